/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The asynchronous I/O stack: its master switch, and waiting for reads.
 */
#ifndef _LINUX_AIOS_H
#define _LINUX_AIOS_H

#include <linux/fs.h>
#include <linux/jump_label.h>

struct aios_poll_slot;
struct folio;

/*
 * The file opted in. <linux/fs.h> leaves this bit of f_mode free; it is named
 * here because few files need it and all include that header.
 */
#define FMODE_AIOS		((__force fmode_t)(1 << 8))

/**
 * struct aios_poll - one wait of a reader for a folio under read
 * @slot: what is known of such waits, NULL if nobody wants to know
 * @start: when it began, local_clock() in ns, 0 if it did not yet
 * @now: when it was looked at the clock last
 * @budget: how long it may spin, in ns
 */
struct aios_poll {
	struct aios_poll_slot *slot;
	u64 start;
	u64 now;
	u64 budget;
};

#ifdef CONFIG_AIOS

DECLARE_STATIC_KEY_FALSE(aios_enabled_key);

/**
 * aios_enabled - whether the stack is enabled
 *
 * A patched-out branch until somebody writes 1 to /sys/kernel/aios/enabled.
 *
 * Return: true if it is.
 */
static inline bool aios_enabled(void)
{
	return static_branch_unlikely(&aios_enabled_key);
}

/**
 * aios_file - whether the stack may serve this open file
 * @file: the open file
 *
 * The one test of every fast path of files.
 *
 * Return: true if the stack is enabled and the file opted in.
 */
static inline bool aios_file(const struct file *file)
{
	return aios_enabled() && (file->f_mode & FMODE_AIOS);
}

bool aios_poll_folio(struct aios_poll *poll, const struct inode *inode,
		     struct folio *folio, size_t count);
void aios_poll_slept(struct aios_poll *poll);

#else /* !CONFIG_AIOS */

static inline bool aios_enabled(void)
{
	return false;
}

static inline bool aios_file(const struct file *file)
{
	return false;
}

static inline bool aios_poll_folio(struct aios_poll *poll,
				   const struct inode *inode,
				   struct folio *folio, size_t count)
{
	return false;
}

static inline void aios_poll_slept(struct aios_poll *poll)
{
}

#endif /* !CONFIG_AIOS */

#endif /* _LINUX_AIOS_H */
