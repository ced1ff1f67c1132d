// SPDX-License-Identifier: GPL-2.0
/*
 * Lets tests read block devices as a driver does: debugfs aios/lbio_raw_test.
 *
 * Who writes the path of a block device to it, and then opens it to read, gets
 * what is on the device: by LBIO if it can be, up to eight pages at a time, else
 * by the ordinary path.
 */

#include <linux/blkdev.h>
#include <linux/cleanup.h>
#include <linux/debugfs.h>
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/lbio_dev.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/sched/mm.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "internal.h"

static DEFINE_MUTEX(lbio_raw_test_lock);
static char lbio_raw_test_path[64];

static int lbio_raw_test_open(struct inode *inode, struct file *file)
{
	struct file *device;

	if (!(file->f_mode & FMODE_READ))
		return 0;
	guard(mutex)(&lbio_raw_test_lock);
	device = bdev_file_open_by_path(lbio_raw_test_path, BLK_OPEN_READ,
					NULL, NULL);
	if (IS_ERR(device))
		return PTR_ERR(device);
	file->private_data = device;
	return 0;
}

static int lbio_raw_test_release(struct inode *inode, struct file *file)
{
	if (file->f_mode & FMODE_READ)
		bdev_fput(file->private_data);
	return 0;
}

static ssize_t lbio_raw_test_write(struct file *file, const char __user *from,
				   size_t count, loff_t *pos)
{
	char text[sizeof(lbio_raw_test_path)] = {};
	const char *path;
	struct file *device;

	if (count >= sizeof(text))
		return -EINVAL;
	if (copy_from_user(text, from, count))
		return -EFAULT;
	path = strim(text);
	device = bdev_file_open_by_path(path, BLK_OPEN_READ, NULL, NULL);
	if (IS_ERR(device))
		return PTR_ERR(device);
	guard(mutex)(&lbio_raw_test_lock);
	strscpy(lbio_raw_test_path, path);
	i_size_write(file_inode(file), bdev_nr_bytes(file_bdev(device)));
	bdev_fput(device);
	return count;
}

/* Copies the first @count bytes of @nr pages, all if they have not so many. */
static ssize_t lbio_raw_test_copy(char __user *to, size_t count,
				  struct page **pages, unsigned int nr)
{
	size_t done = 0;
	size_t left = 0;
	unsigned int i;

	for (i = 0; i < nr; i++) {
		size_t len = min(count - done, PAGE_SIZE);

		left |= copy_to_user(to + done, page_address(pages[i]), len);
		done += len;
		put_page(pages[i]);
	}
	return left ? -EFAULT : done;
}

static ssize_t lbio_raw_test_read(struct file *file, char __user *to,
				  size_t count, loff_t *pos)
{
	unsigned int nr = clamp(count / PAGE_SIZE, 1, LBIO_MAX_PAGES);
	struct file *device = file->private_data;
	struct page *pages[LBIO_MAX_PAGES];
	unsigned int noio;
	ssize_t done;
	int got;

	if (!IS_ALIGNED(*pos, SECTOR_SIZE))
		return -EINVAL;
	/* As within the submission of a request. */
	noio = memalloc_noio_save();
	got = lbio_read_bdev(file_bdev(device), *pos >> SECTOR_SHIFT, nr,
			     pages);
	memalloc_noio_restore(noio);
	if (got == -EAGAIN)
		return vfs_read(device, to, count, pos);
	if (WARN_ON_ONCE(got <= 0 || got > nr))
		return -EIO;
	done = lbio_raw_test_copy(to, count, pages, got);
	if (done > 0)
		*pos += done;
	return done;
}

static const struct file_operations lbio_raw_test_fops = {
	.owner		= THIS_MODULE,
	.open		= lbio_raw_test_open,
	.release	= lbio_raw_test_release,
	.read		= lbio_raw_test_read,
	.write		= lbio_raw_test_write,
	.llseek		= default_llseek,
};

void lbio_raw_test_debugfs(struct dentry *root)
{
	debugfs_create_file("lbio_raw_test", 0600, root, NULL,
			    &lbio_raw_test_fops);
}
