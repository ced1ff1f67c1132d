// SPDX-License-Identifier: GPL-2.0
/*
 * Who lets LBIO read: one driver, nvme, and one file system, ext4. Both may be
 * modules.
 *
 * They are found by the operations of a disk and of a file, not by members of
 * the structures that everybody includes. Operations that match belong to a
 * module in use, by the mounted file system or the open file: it stays, and so
 * does what is beside them. What does not match is not followed.
 */

#include <linux/blkdev.h>
#include <linux/export.h>
#include <linux/fs.h>

#include "internal.h"

struct lbio_driver lbio_driver __read_mostly;
struct lbio_fs lbio_fs __read_mostly;

/**
 * lbio_set_driver - let a driver's drives be read
 * @driver: the driver, copied; NULL before it goes away
 */
void lbio_set_driver(const struct lbio_driver *driver)
{
	if (driver)
		lbio_driver.ns_offset = driver->ns_offset;
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
	if (fs) {
		lbio_fs.map = fs->map;
		lbio_fs.ask = fs->ask;
	}
	/* Pairs with lbio_may_map(). */
	smp_store_release(&lbio_fs.fops, fs ? fs->fops : NULL);
}
EXPORT_SYMBOL_GPL(lbio_set_fs);
