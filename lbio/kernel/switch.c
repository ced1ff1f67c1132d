// SPDX-License-Identifier: GPL-2.0
/*
 * The master switch of the asynchronous I/O stack: /sys/kernel/aios.
 *
 * A file is served only if the stack is enabled here and the file opted in;
 * with either missing, not one instruction of the stack runs. A driver who reads
 * a block device opted in by asking.
 */

#include <linux/aios.h>
#include <linux/debugfs.h>
#include <linux/export.h>
#include <linux/init.h>
#include <linux/kobject.h>
#include <linux/kstrtox.h>
#include <linux/lbio_dev.h>
#include <linux/sysfs.h>
#include <linux/time64.h>

#include "internal.h"

/* A file with 0 or 1, which switches a static key. */
struct aios_switch {
	struct kobj_attribute attr;
	struct static_key_false *key;
};

static ssize_t switch_show(struct kobject *kobj, struct kobj_attribute *attr,
			   char *buf)
{
	struct aios_switch *sw = container_of(attr, struct aios_switch, attr);

	return sysfs_emit(buf, "%d\n", static_key_enabled(sw->key));
}

static ssize_t switch_store(struct kobject *kobj, struct kobj_attribute *attr,
			    const char *buf, size_t count)
{
	struct aios_switch *sw = container_of(attr, struct aios_switch, attr);
	bool on;
	int error;

	error = kstrtobool(buf, &on);
	if (error)
		return error;

	/*
	 * What is under way ends as it began: each read takes one decision, and
	 * what was sent is waited for in any case.
	 */
	if (on)
		static_branch_enable(sw->key);
	else
		static_branch_disable(sw->key);
	return count;
}

static struct aios_switch enabled_switch = {
	.attr = __ATTR(enabled, 0644, switch_show, switch_store),
	.key = &aios_enabled_key,
};

static struct aios_switch lbio_writes_switch = {
	.attr = __ATTR(lbio_writes, 0644, switch_show, switch_store),
	.key = &lbio_writes_key,
};

/* Drivers test it inline. */
DEFINE_STATIC_KEY_FALSE(aios_enabled_key);
EXPORT_SYMBOL_GPL(aios_enabled_key);

static ssize_t poll_max_ns_show(struct kobject *kobj,
				struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%lu\n", READ_ONCE(aios_poll_max_ns));
}

static ssize_t poll_max_ns_store(struct kobject *kobj,
				 struct kobj_attribute *attr, const char *buf,
				 size_t count)
{
	unsigned long max_ns;
	int error;

	error = kstrtoul(buf, 0, &max_ns);
	if (error)
		return error;
	if (max_ns > NSEC_PER_SEC)
		return -EINVAL;

	WRITE_ONCE(aios_poll_max_ns, max_ns);
	return count;
}

static struct kobj_attribute poll_max_ns_attr = __ATTR_RW(poll_max_ns);

static ssize_t poll_halt_show(struct kobject *kobj,
			      struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%d\n", READ_ONCE(aios_poll_halt));
}

static ssize_t poll_halt_store(struct kobject *kobj,
			       struct kobj_attribute *attr, const char *buf,
			       size_t count)
{
	bool on;
	int error;

	error = kstrtobool(buf, &on);
	if (error)
		return error;

	WRITE_ONCE(aios_poll_halt, on);
	return count;
}

static struct kobj_attribute poll_halt_attr = __ATTR_RW(poll_halt);

static struct attribute *aios_attrs[] = {
	&enabled_switch.attr.attr,
	&lbio_writes_switch.attr.attr,
	&poll_halt_attr.attr,
	&poll_max_ns_attr.attr,
	NULL,
};

static const struct attribute_group aios_group = {
	.attrs = aios_attrs,
};

static int __init aios_init(void)
{
	struct kobject *kobj;
	struct dentry *root;
	int error;

	kobj = kobject_create_and_add("aios", kernel_kobj);
	if (!kobj)
		return -ENOMEM;

	error = sysfs_create_group(kobj, &aios_group);
	if (error) {
		kobject_put(kobj);
		return error;
	}

	root = debugfs_create_dir("aios", NULL);
	aios_poll_debugfs(root);
	lbio_debugfs(root);
	lbio_dev_debugfs(root);
	lbio_io_debugfs(root);
	lbio_write_debugfs(root);
	if (IS_ENABLED(CONFIG_AIOS_KUNIT_TEST))
		lbio_raw_test_debugfs(root);
	return 0;
}
late_initcall(aios_init);
