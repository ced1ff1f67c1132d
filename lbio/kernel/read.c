// SPDX-License-Identifier: GPL-2.0
/*
 * A buffered read, or a fault, that misses the page cache, without the block
 * layer.
 *
 * The order is: find where the page is, tell the drive, put the page into the
 * page cache and do whatever else needs doing while the drive works, wait
 * (wait.c). The drive answers to the reader and to nobody else: until he has seen
 * the answer, the page is locked, or in no page cache at all. A read is of one
 * page or of some that lie one behind the other on the drive; what is said here
 * of the page goes for each of them.
 *
 * No stale data may enter the page cache. What could change the blocks' content
 * or their owner, and why it does no harm:
 *
 * - Truncation, hole punching, collapsing and inserting of ranges, and whatever
 *   else moves blocks, hold the mapping's invalidate_lock exclusively. The
 *   reader holds it shared from before he asks the file system for the block
 *   until the locked folio is in the page cache, as readahead does. From then
 *   on they wait for the folio's lock before they free a block.
 *
 * - Writes, buffered, direct or by mmap, do not take that lock for long enough.
 *   They meet a folio in the page cache: buffered ones and faults wait for its
 *   lock, direct ones remove it when they are done, which waits for the lock,
 *   too, and moving of extents locks the folios it swaps. They miss a folio that
 *   is read but not inserted yet. So the folio is inserted first ("early"), and
 *   the file system asked again, as readahead does it, unless the inode is
 *   quiet: not open for writing, nothing dirty, nothing under writeback. Then
 *   nobody moves extents without opening the file, and the block has the file's
 *   content, and to change that somebody has to open the file for writing, or
 *   change its size, first; both count in ->opens. Insertion and the test of
 *   that count have a full barrier between them, as a write has between its
 *   open and its lookup of the page: either the write meets the folio, or the
 *   reader sees the count changed and throws the folio away.
 *
 * - Reclaim and migration leave locked folios alone. Eviction between a change
 *   and the insertion would need a change, see above.
 *
 * - Reset and removal of the controller: the reader holds a reference to the
 *   usage counter of the request queue, so they wait for him, having cancelled
 *   his command (queue.c). What a read that fails for any reason leaves behind
 *   the ordinary path reads again, and reports what there is to report.
 *
 * - Faults look at a folio again once they have it, as for any other they find:
 *   under its lock they compare its mapping with the file's, and the page with
 *   i_size, before it goes into a page table, and truncation unmaps what is in
 *   there before it takes the lock. What may be written through a shared mapping
 *   is of a file that is open for writing: the mapping keeps it so.
 *
 * A folio that was inserted, and into which no read was sent, is removed from
 * the page cache before it is unlocked, as by truncation. One whose read failed,
 * or is not wanted, stays, not up to date. Who waited for it looks again.
 */

#include <linux/blkdev.h>
#include <linux/err.h>
#include <linux/folio_batch.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/timekeeping.h>

#include "internal.h"
#include "submit.h"
#include "trace.h"

/* Notes why the ordinary path has to read. */
static noinline bool lbio_refuse(const struct inode *inode, pgoff_t index,
				 enum lbio_event why)
{
	lbio_count(why);
	trace_lbio_fallback(inode, index, why);
	return false;
}

/* Gives all but @nr pages back, which nobody has seen. */
static void lbio_shorten(struct lbio_io *io, unsigned int nr)
{
	unsigned int i;

	lbio_put_pages(io, io->nr - nr);
	for (i = nr; i < io->nr; i++)
		folio_put(lbio_folio(io, i));
	io->nr = nr;
}

/*
 * Whether a miss of @nr pages is part of a sequential stream, which large folios
 * and readahead serve better; the tests of page_cache_sync_ra().
 */
static bool lbio_is_sequential(const struct file *file,
			       struct address_space *mapping, pgoff_t index,
			       pgoff_t nr)
{
	pgoff_t prev, miss;

	if (file->f_mode & FMODE_RANDOM)
		return false;
	prev = (unsigned long long)file->f_ra.prev_pos >> PAGE_SHIFT;
	if (!index || index - prev <= 1)
		return true;
	/* More pages before this one are cached than are wanted. */
	rcu_read_lock();
	miss = page_cache_prev_miss(mapping, index - 1, nr + 1);
	rcu_read_unlock();
	return index - miss - 1 > nr;
}

/* Inserts page @i, locked, unless there is one, or no memory. */
static __always_inline int lbio_insert_page(struct lbio_io *io,
					    struct address_space *mapping,
					    pgoff_t index, unsigned int i)
{
	struct folio *folio = lbio_folio(io, i);
	gfp_t gfp;
	int error;

	/*
	 * Nobody is to be killed for a page that the ordinary path could wait
	 * for, and nothing waits for I/O of the drive here.
	 */
	gfp = readahead_gfp_mask(mapping) & ~(__GFP_IO | __GFP_FS);
	error = filemap_add_folio(mapping, folio, index + i, gfp);
	if (likely(!error)) {
		io->inserted |= BIT(i);
		io->thrashing |= folio_test_workingset(folio);
		return 0;
	}
	lbio_refuse(mapping->host, index + i,
		    error == -EEXIST ? LBIO_EV_PRESENT : LBIO_EV_NO_MEMORY);
	return error;
}

/*
 * Inserts the folios, locked. One that somebody else inserted first is left out;
 * without memory so are those that follow. Before that the read gets its
 * references; up to here those of the chunk, into which it is in flight, did.
 */
static void lbio_insert(struct lbio_io *io, struct address_space *mapping,
			pgoff_t index)
{
	unsigned int i;
	int error;

	for (i = 0; i < io->nr; i++)
		folio_get(lbio_folio(io, i));
	for (i = 0; i < io->nr; i++) {
		error = lbio_insert_page(io, mapping, index, i);
		if (error && error != -EEXIST)
			return;
	}
}

/* Throws a folio away that nobody is to see. */
static void lbio_discard(struct folio *folio, bool inserted)
{
	if (inserted) {
		filemap_remove_folio(folio);
		folio_unlock(folio);
	}
	folio_put(folio);
}

/*
 * Inserts, then submits: for files that may be written to. Has the pages, and
 * gives them back if it fails.
 */
static noinline bool lbio_start_early(struct lbio_io *io,
				      const struct lbio_ns *ns,
				      const struct lbio_extent *extent,
				      struct address_space *mapping,
				      pgoff_t index)
{
	struct lbio_queue *queue = io->queue;
	enum lbio_event why = LBIO_EV_UNMAPPED;
	struct lbio_extent again;
	bool sent = false;
	unsigned int i;

	lbio_count(LBIO_EV_EARLY);
	lbio_insert(io, mapping, index);
	/* What follows a page that is there already is for another read. */
	for (i = ffz(io->inserted); i < io->nr; i++)
		if (io->inserted & BIT(i)) {
			folio_get(lbio_folio(io, i));
			lbio_discard(lbio_folio(io, i), true);
			io->inserted &= ~BIT(i);
		}
	if (!io->inserted)
		goto discard;
	if (ffz(io->inserted) < io->nr)
		lbio_shorten(io, ffz(io->inserted));

	/*
	 * Where the page was before the folio was locked is hearsay. Whoever
	 * changes that, and then looks for the folio, meets it, or is seen here.
	 */
	smp_mb();
	if (lbio_map(mapping->host, index, &again) &&
	    again.sector == extent->sector && again.pages >= io->nr) {
		spin_lock(&queue->sq_lock);
		why = queue->live ? LBIO_EV_FULL : LBIO_EV_STOPPED;
		sent = queue->live &&
		       lbio_submit(io, ns, extent->sector +
						   io->bdev->bd_start_sect);
		spin_unlock(&queue->sq_lock);
	}
	io->valid = sent;
	if (likely(sent))
		return true;
	lbio_refuse(mapping->host, index, why);
discard:
	lbio_put_pages(io, io->nr);
	for (i = 0; i < io->nr; i++)
		lbio_discard(lbio_folio(io, i), io->inserted & BIT(i));
	return false;
}

/* Finds out whether what was read before it was inserted may be seen. */
static __always_inline void lbio_validate(struct lbio_io *io,
					  const struct lbio_extent *extent,
					  struct address_space *mapping,
					  pgoff_t index)
{
	/* Pairs with the barrier of whoever counts an open. */
	smp_mb();
	io->valid = atomic_read(extent->opens) == extent->seen;
	if (unlikely(!io->valid))
		lbio_refuse(mapping->host, index, LBIO_EV_CHANGED);
}

/* As lbio_start(), for all that is not one page that is there to be taken. */
static noinline bool lbio_start_any(struct lbio_io *io,
				    const struct lbio_ns *ns,
				    const struct lbio_extent *extent,
				    struct address_space *mapping,
				    pgoff_t index, unsigned int nr)
{
	sector_t sector = extent->sector + io->bdev->bd_start_sect;
	struct lbio_queue *queue = io->queue;
	enum lbio_event why;
	bool taken;

	if (unlikely(!extent->quiet)) {
		spin_lock(&queue->sq_lock);
		taken = lbio_take_pages(io, nr, &why);
		spin_unlock(&queue->sq_lock);
		if (unlikely(!taken))
			return lbio_refuse(mapping->host, index, why);
		return lbio_start_early(io, ns, extent, mapping, index);
	}
	if (unlikely(!lbio_submit_pages(io, ns, sector, nr, &why)))
		return lbio_refuse(mapping->host, index, why);
	lbio_insert(io, mapping, index);
	lbio_validate(io, extent, mapping, index);
	return true;
}

/* Submits the read and inserts the folios, in whichever order is safe. */
static __always_inline bool lbio_start(struct lbio_io *io,
				       const struct lbio_ns *ns,
				       const struct lbio_extent *extent,
				       struct address_space *mapping,
				       pgoff_t index, unsigned int nr)
{
	sector_t sector = extent->sector + io->bdev->bd_start_sect;

	if (unlikely(!extent->quiet || nr > 1))
		return lbio_start_any(io, ns, extent, mapping, index, nr);
	if (unlikely(!lbio_submit_page(io, ns, sector)))
		return lbio_start_any(io, ns, extent, mapping, index, 1);
	folio_get(lbio_folio(io, 0));
	lbio_insert_page(io, mapping, index, 0);
	lbio_validate(io, extent, mapping, index);
	return true;
}

/*
 * Whether the access time is as new as relatime wants it for sure: younger than
 * the last change and than a day. atime_needs_update() would say so, too.
 */
static bool lbio_atime_is_fresh(const struct file *file,
				const struct inode *inode)
{
	time64_t atime = inode_get_atime_sec(inode);

	return (file->f_path.mnt->mnt_flags & MNT_RELATIME) &&
	       atime > inode_get_mtime_sec(inode) &&
	       atime > inode_get_ctime_sec(inode) &&
	       ktime_get_real_seconds() - atime < 24 * 60 * 60;
}

/* Whether the access time needs no update. */
static bool lbio_is_accessed(const struct file *file, struct inode *inode)
{
	return (file->f_flags & O_NOATIME) ||
	       lbio_atime_is_fresh(file, inode) ||
	       !atime_needs_update(&file->f_path, inode);
}

/* Passes the folios on that follow each other from the first, if it is there. */
static bool lbio_pass_on(struct lbio_io *io, unsigned int good,
			 struct folio_batch *fbatch)
{
	unsigned int first = ffz(good);
	unsigned int i;

	for (i = 0; i < first; i++)
		folio_batch_add(fbatch, lbio_folio(io, i));
	/* What is behind a gap is in the page cache for who comes for it. */
	for (; i < io->nr; i++)
		if (good & BIT(i))
			folio_put(lbio_folio(io, i));
	return first;
}

/*
 * Sends a read of @nr pages from @index on, or of fewer, and does what can be done
 * while the drive works. Returns whether there is one to wait for. @io has the
 * block device.
 */
static __always_inline bool lbio_begin(struct lbio_io *io,
				       struct address_space *mapping,
				       pgoff_t index, pgoff_t nr)
{
	/* All that is read of it is written before. */
	struct lbio_extent extent __uninitialized;
	const struct lbio_ns *ns;
	enum lbio_event why;

	if (unlikely(!lbio_enter_queue(io, &ns, nr, &why)))
		goto refuse;
	why = LBIO_EV_INVALIDATING;
	if (unlikely(!filemap_invalidate_trylock_shared(mapping)))
		goto exit_queue;
	why = LBIO_EV_UNMAPPED;
	if (unlikely(!lbio_map(mapping->host, index, &extent)))
		goto unlock;
	if (unlikely(nr > 1))
		nr = lbio_limit(io->bdev, extent.sector,
				min(nr, extent.pages));
	if (unlikely(extent.sector + nr * PAGE_SECTORS >
		     bdev_nr_sectors(io->bdev)))
		goto unlock;

	io->inserted = 0;
	io->valid = false;
	io->low = false;
	io->thrashing = false;
	if (unlikely(!lbio_start(io, ns, &extent, mapping, index, nr))) {
		filemap_invalidate_unlock_shared(mapping);
		lbio_not_sent(io);
		return false;
	}
	filemap_invalidate_unlock_shared(mapping);
	lbio_sent(io);
	return true;

unlock:
	filemap_invalidate_unlock_shared(mapping);
exit_queue:
	lbio_exit_queue(io->bdev);
refuse:
	return lbio_refuse(mapping->host, index, why);
}

/**
 * lbio_read_miss - read pages that are not in the page cache
 * @iocb: a buffered read, whose file opted in
 * @mapping: the file's mapping
 * @index: the first page, which is not there
 * @nr: how many are wanted, %LBIO_MAX_PAGES at most
 * @fbatch: empty; gets folios from the first page on, up to date, with a
 * reference for the caller. They may be fewer than @nr.
 *
 * Return: what became of it. Without folios the ordinary path has to read, for
 * whatever reason.
 */
enum lbio_result lbio_read_miss(struct kiocb *iocb,
				struct address_space *mapping, pgoff_t index,
				pgoff_t nr, struct folio_batch *fbatch)
{
	/* All that is read of it is written before. */
	struct lbio_io io __uninitialized;
	bool accessed;
	int good;

	io.bdev = mapping->host->i_sb->s_bdev;
	if ((iocb->ki_flags & (IOCB_NOWAIT | IOCB_NOIO | IOCB_WAITQ |
			       IOCB_DONTCACHE)) ||
	    !io.bdev || !lbio_may_map(iocb->ki_filp))
		return LBIO_NOT_READ;
	if (lbio_is_sequential(iocb->ki_filp, mapping, index, nr)) {
		lbio_refuse(mapping->host, index, LBIO_EV_SEQUENTIAL);
		return LBIO_NOT_READ;
	}
	io.vmf = NULL;
	if (unlikely(!lbio_begin(&io, mapping, index, nr)))
		return LBIO_NOT_READ;
	/* Updating it may wait for the journal, and so for the drive. */
	accessed = lbio_is_accessed(iocb->ki_filp, mapping->host);

	good = lbio_wait(&io);
	if (unlikely(good <= 0 || !lbio_pass_on(&io, good, fbatch)))
		return LBIO_NOT_READ;
	return accessed ? LBIO_READ_ACCESSED : LBIO_READ;
}

/**
 * lbio_read_fault - read the page of a fault that is not in the page cache
 * @vmf: the fault, of a file that opted in
 * @fpin: %NULL; gets the file, with a reference for the caller, if the fault's
 * lock was dropped and the fault has to be made again
 *
 * Return: the page's folio, up to date, not locked, with a reference for the
 * caller; -EAGAIN if the ordinary path has to read, for whatever reason; -EINTR if
 * the task was killed meanwhile: then the fault's lock is dropped, with @fpin or
 * without.
 */
struct folio *lbio_read_fault(struct vm_fault *vmf, struct file **fpin)
{
	struct file *file = vmf->vma->vm_file;
	struct address_space *mapping = file->f_mapping;
	/* All that is read of it is written before. */
	struct lbio_io io __uninitialized;
	int good;

	io.bdev = mapping->host->i_sb->s_bdev;
	if ((vmf->flags & FAULT_FLAG_RETRY_NOWAIT) || !io.bdev ||
	    !lbio_may_map(file))
		return ERR_PTR(-EAGAIN);
	io.vmf = vmf;
	io.fpin = NULL;
	if (unlikely(!lbio_begin(&io, mapping, vmf->pgoff, 1)))
		return ERR_PTR(-EAGAIN);

	good = lbio_wait(&io);
	*fpin = io.fpin;
	if (likely(good > 0))
		return lbio_folio(&io, 0);
	if (!good)
		return ERR_PTR(-EAGAIN);
	/* Handlers of faults look for fatal signals if they have no lock only. */
	if (!io.fpin)
		release_fault_lock(vmf);
	return ERR_PTR(-EINTR);
}
