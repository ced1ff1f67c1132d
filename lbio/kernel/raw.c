// SPDX-License-Identifier: GPL-2.0
/*
 * A read of a block device for another driver, without the block layer.
 *
 * It goes to the drive as a read of a file does (submit.h, wait.c), into pages of
 * the same pool, which then are the caller's and in no page cache. So of the
 * rules that read.c begins with only these are left:
 *
 * - Lifetime. The caller has the device open, so that the request queue and the
 *   namespace stay; once the reader has a reference to the queue's usage counter
 *   reset, removal, reformatting, and whoever else freezes it, wait for him.
 *   Until then they make him fall back. While he has it he waits for nothing but
 *   the drive's answer, which lbio_dev_cancel() gives for it: he may be on the way
 *   to storage himself, within the submission of a request to another disk and in
 *   a scope without I/O (NOIO).
 *
 * - Writes. What write() or a mapping has left in the page cache of the block
 *   device itself is not on the drive yet. Direct reads write it first, which
 *   would be a wait for other I/O; here the ordinary path reads. Who writes while
 *   he reads gets some of both, as ever. The page caches of other devices, files
 *   and partitions on the same drive are not looked at, as by direct reads.
 *
 * - The pages. Each has a reference of its reader's from before the pool may let
 *   go of it. In lazy mode the IOMMU lets the drive write to it for up to a second
 *   and a tick longer, as to any page of the page cache that was read like this;
 *   in strict mode it is unmapped before he sees it.
 */

#include <linux/aios.h>
#include <linux/blkdev.h>
#include <linux/export.h>
#include <linux/mm.h>
#include <linux/pagemap.h>

#include "internal.h"
#include "submit.h"
#include "trace.h"

/* Notes why the ordinary path has to read. */
static noinline int lbio_refuse_raw(const struct block_device *bdev,
				    sector_t sector, enum lbio_event why)
{
	lbio_count(why);
	trace_lbio_raw_fallback(bdev, sector, why);
	return -EAGAIN;
}

/*
 * Whether there is something in the page cache that the drive may not have yet.
 * A page's mark for writeback is set before the one for dirty is cleared, and
 * both are in one word: looked at once, one of them is seen.
 */
static bool lbio_is_dirty(const struct address_space *mapping)
{
	const gfp_t marks = XA_FLAGS_MARK(PAGECACHE_TAG_DIRTY) |
			    XA_FLAGS_MARK(PAGECACHE_TAG_WRITEBACK);

	return READ_ONCE(mapping->i_pages.xa_flags) & marks;
}

/* Has the reference to the queue's usage counter, and gives it back if it fails. */
static bool lbio_start_raw(struct lbio_io *io, const struct lbio_ns *ns,
			   sector_t sector, unsigned int nr,
			   enum lbio_event *why)
{
	*why = LBIO_EV_UNMAPPED;
	if (unlikely(!lbio_is_inside(io->bdev, ns->lba_shift, sector, nr)))
		goto exit_queue;
	*why = LBIO_EV_DIRTY;
	if (unlikely(lbio_is_dirty(io->bdev->bd_mapping)))
		goto exit_queue;
	if (nr > 1)
		nr = lbio_limit(io->bdev, sector, nr);
	sector += io->bdev->bd_start_sect;

	io->vmf = NULL;
	io->inserted = 0;
	io->valid = true;
	io->low = false;
	io->thrashing = false;
	if (nr == 1 && likely(lbio_submit_page(io, ns, sector)))
		return true;
	if (likely(lbio_submit_pages(io, ns, sector, nr, why)))
		return true;
	lbio_not_sent(io);
	return false;

exit_queue:
	lbio_exit_queue(io->bdev);
	return false;
}

/* lbio_read_bdev() while the stack is enabled. */
int __lbio_read_bdev(struct block_device *bdev, sector_t sector,
		     unsigned int nr, struct page **pages)
{
	/* All that is read of it is written before. */
	struct lbio_io io __uninitialized;
	const struct lbio_ns *ns;
	enum lbio_event why;
	unsigned int i;

	might_sleep();
	if (WARN_ON_ONCE(!nr || nr > LBIO_MAX_PAGES))
		return -EAGAIN;
	io.bdev = bdev;
	if (unlikely(!lbio_enter_queue(&io, &ns, nr, &why)) ||
	    unlikely(!lbio_start_raw(&io, ns, sector, nr, &why)))
		return lbio_refuse_raw(bdev, sector, why);
	/* Up to here the chunk's, into which the read is in flight, did. */
	for (i = 0; i < io.nr; i++)
		get_page(io.pages[i]);
	lbio_sent(&io);

	if (unlikely(!lbio_wait_raw(&io))) {
		for (i = 0; i < io.nr; i++)
			put_page(io.pages[i]);
		return -EAGAIN;
	}
	for (i = 0; i < io.nr; i++)
		pages[i] = io.pages[i];
	return io.nr;
}
EXPORT_SYMBOL_GPL(__lbio_read_bdev);
