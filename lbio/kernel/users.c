// SPDX-License-Identifier: GPL-2.0
/*
 * Who lets LBIO read: one driver, nvme, and one file system, ext4. Both may be
 * modules.
 *
 * They are found by the operations of a disk and of a file, not by members of
 * the structures that everybody includes. Operations that match belong to a
 * module in use, by the mounted file system or the open file: it stays, and so
 * does the function beside them. What does not match is not followed.
 */

#include <linux/blkdev.h>
#include <linux/export.h>
#include <linux/fs.h>

#include "internal.h"

static struct lbio_driver lbio_driver __read_mostly;
static struct lbio_fs lbio_fs __read_mostly;

/**
 * lbio_set_driver - let a driver's drives be read
 * @driver: the driver, copied; NULL before it goes away
 */
void lbio_set_driver(const struct lbio_driver *driver)
{
	if (driver)
		lbio_driver.ns = driver->ns;
	/* Pairs with lbio_find_ns(). */
	smp_store_release(&lbio_driver.fops, driver ? driver->fops : NULL);
}
EXPORT_SYMBOL_GPL(lbio_set_driver);

/**
 * lbio_set_fs - let a file system's files be read
 * @fs: the file system, copied; NULL before it goes away
 */
void lbio_set_fs(const struct lbio_fs *fs)
{
	if (fs)
		lbio_fs.map = fs->map;
	/* Pairs with lbio_may_map(). */
	smp_store_release(&lbio_fs.fops, fs ? fs->fops : NULL);
}
EXPORT_SYMBOL_GPL(lbio_set_fs);

/* The namespace behind @bdev, or NULL. */
const struct lbio_ns *lbio_find_ns(struct block_device *bdev)
{
	struct gendisk *disk = bdev->bd_disk;

	/* Pairs with lbio_set_driver(): the callback is set with the fops. */
	if (disk->fops != smp_load_acquire(&lbio_driver.fops))
		return NULL;
	return lbio_driver.ns(disk);
}

/* Whether lbio_map() may be called for the inode of @file. */
bool lbio_may_map(const struct file *file)
{
	/* Pairs with lbio_set_fs(): the callback is set with the fops. */
	return file->f_op == smp_load_acquire(&lbio_fs.fops);
}

bool lbio_map(struct inode *inode, pgoff_t index, struct lbio_extent *extent)
{
	return lbio_fs.map(inode, index, extent);
}
