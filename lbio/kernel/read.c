// SPDX-License-Identifier: GPL-2.0
/*
 * A buffered read that misses the page cache, without the block layer.
 *
 * The order is: find where the page is, tell the drive, put the page into the
 * page cache and do whatever else needs doing while the drive works, wait. The
 * drive answers to the reader and to nobody else: until he has seen the answer,
 * the page is locked, or in no page cache at all.
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
 *   his command (queue.c). A read that fails for any reason leaves no folio
 *   behind: the ordinary path reads again, and reports what there is to report.
 *
 * A folio that was inserted and is not wanted is removed from the page cache
 * before it is unlocked, as by truncation. Who waited for it looks again.
 */

#include <linux/blkdev.h>
#include <linux/cpuset.h>
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/pagemap.h>
#include <linux/part_stat.h>
#include <linux/sched.h>
#include <linux/sched/clock.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/stat.h>
#include <linux/task_io_accounting_ops.h>
#include <linux/vmstat.h>

#include "../blk-rq-qos.h"
#include "internal.h"

/* Shortest and longest sleep of a reader of a queue without interrupts, in us. */
#define LBIO_NAP_MIN	20
#define LBIO_NAP_MAX	1000

/**
 * struct lbio_io - a read of one page
 * @ns: what is read
 * @queue: where it was submitted; the reader may run elsewhere by now
 * @chunk: where @folio is from
 * @folio: the page; the reader has a reference
 * @dma: its bus address
 * @slot: of the command
 * @last: @folio was the last of @chunk
 */
struct lbio_io {
	const struct lbio_ns *ns;
	struct lbio_queue *queue;
	struct lbio_chunk *chunk;
	struct folio *folio;
	dma_addr_t dma;
	u16 slot;
	bool last;
};

static bool lbio_take_page(struct lbio_io *io)
	__must_hold(&io->queue->sq_lock)
{
	struct lbio_queue *queue = io->queue;
	struct lbio_chunk *chunk = queue->chunk;
	int index;

	if (unlikely(!chunk))
		return false;
	index = lbio_chunk_take(&chunk->state);
	if (unlikely(index < 0))
		return false;
	queue->used = true;
	io->last = !lbio_chunk_has_pages(&chunk->state);
	io->chunk = chunk;
	io->folio = page_folio(chunk->page + index);
	io->dma = chunk->dma + ((dma_addr_t)index << PAGE_SHIFT);
	folio_get(io->folio);
	return true;
}

/*
 * The device is done with the page, or was never told of it. In strict mode it
 * cannot reach the page any more when this returns.
 */
static void lbio_put_page(struct lbio_io *io)
{
	struct lbio_queue *queue = io->queue;
	struct lbio_chunk *chunk = io->chunk;

	spin_lock(&queue->sq_lock);
	lbio_chunk_finish(&chunk->state);
	if (unlikely(!queue->dev->lazy) && chunk == queue->chunk) {
		list_add_tail(&chunk->list, &queue->full);
		WRITE_ONCE(queue->chunk, NULL);
	}
	spin_unlock(&queue->sq_lock);
	if (unlikely(!queue->dev->lazy))
		lbio_pool_unmap_idle(queue);
}

static bool lbio_submit(struct lbio_io *io, sector_t sector)
	__must_hold(&io->queue->sq_lock)
{
	struct lbio_queue *queue = io->queue;
	unsigned int shift = io->ns->lba_shift;
	s64 entry;

	entry = lbio_ring_submit(queue->ring, io->ns->nsid,
				 sector >> (shift - SECTOR_SHIFT),
				 PAGE_SIZE >> shift, io->dma);
	if (unlikely(entry < 0))
		return false;
	io->slot = entry & 0xffff;
	queue->started[io->slot] = jiffies;
	queue->dev->ops->sq_doorbell(queue->hw, entry >> 16);
	if (unlikely(!queue->ticking)) {
		queue->ticking = true;
		schedule_delayed_work(&queue->tick, LBIO_TICK);
	}
	return true;
}

/*
 * The waiting loop, in a function of its own so that a profile tells waiting
 * from working. Returns whether the command is complete.
 */
static noinline bool lbio_spin_slot(struct lbio_io *io, u64 start, u64 budget)
{
	struct lbio_queue *queue = io->queue;

	while (lbio_ring_poll(queue->ring, io->slot) == -EINPROGRESS) {
		/* An interrupt takes the completion before a poll could. */
		if (queue->polled)
			lbio_reap(queue);
		if (need_resched() || signal_pending(current) ||
		    !single_task_running())
			return false;
		if (local_clock() - start >= budget)
			return false;
		aios_spin_relax();
	}
	return true;
}

static void lbio_sleep(struct lbio_io *io)
{
	struct lbio_queue *queue = io->queue;
	u64 token = (unsigned long)current;
	unsigned int nap = LBIO_NAP_MIN;

	lbio_count(LBIO_EV_SLEPT);
	while (queue->polled &&
	       lbio_ring_poll(queue->ring, io->slot) == -EINPROGRESS) {
		usleep_range_state(nap, 2 * nap, TASK_UNINTERRUPTIBLE);
		nap = min(2 * nap, LBIO_NAP_MAX);
		lbio_reap(queue);
	}
	/*
	 * Not killable: the slot is the reader's. The watchdog ends the wait if
	 * the controller does not.
	 */
	for (;;) {
		set_current_state(TASK_UNINTERRUPTIBLE);
		if (!lbio_ring_sleep(queue->ring, io->slot, token))
			break;
		io_schedule();
	}
	__set_current_state(TASK_RUNNING);
}

/* Waits for the command's status and gives the slot back. */
static int lbio_wait(struct lbio_io *io, const struct inode *inode)
{
	struct aios_poll poll;
	bool hit = false;
	u64 budget;
	int status;

	/* It may be complete before anybody waited; that teaches nothing. */
	if (lbio_ring_poll(io->queue->ring, io->slot) == -EINPROGRESS) {
		budget = aios_poll_begin(&poll, inode, PAGE_SIZE);
		if (budget)
			hit = lbio_spin_slot(io, poll.start, budget);
		if (!hit)
			lbio_sleep(io);
		aios_poll_end(&poll, hit);
	}
	status = lbio_ring_poll(io->queue->ring, io->slot);
	lbio_ring_release(io->queue->ring, io->slot);
	return status;
}

/* Whether requests to @q are looked at by somebody whom LBIO would bypass. */
static bool lbio_is_watched(struct request_queue *q)
{
	struct rq_qos *rqos = q->rq_qos;

	/* Throttling of writeback is about writes. */
	if (rqos && (rqos->id != RQ_QOS_WBT || rqos->next))
		return true;
#ifdef CONFIG_BLK_DEV_THROTTLING
	if (q->td)
		return true;
#endif
#ifdef CONFIG_BLK_DEV_IO_TRACE
	if (rcu_access_pointer(q->blk_trace))
		return true;
#endif
	return q->elevator;
}

/*
 * Whether a miss is part of a sequential stream, which large folios and
 * readahead serve better; the tests of page_cache_sync_ra().
 */
static bool lbio_is_sequential(const struct file *file,
			       struct address_space *mapping, pgoff_t index)
{
	pgoff_t prev, miss;

	if (file->f_mode & FMODE_RANDOM)
		return false;
	prev = (unsigned long long)file->f_ra.prev_pos >> PAGE_SHIFT;
	if (!index || index - prev <= 1)
		return true;
	/* More than one page before this one is cached. */
	rcu_read_lock();
	miss = page_cache_prev_miss(mapping, index - 1, 2);
	rcu_read_unlock();
	return index - miss > 2;
}

/* Pages of the pool are the local node's; tasks may have asked for others. */
static bool lbio_may_use_pool(struct lbio_queue *queue)
{
#ifdef CONFIG_NUMA
	return !current->mempolicy && !cpuset_do_page_mem_spread() &&
	       node_isset(numa_node_id(), cpuset_current_mems_allowed);
#else
	return true;
#endif
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

static int lbio_insert(struct lbio_io *io, struct address_space *mapping,
		       pgoff_t index)
{
	int error;

	error = filemap_add_folio(mapping, io->folio, index,
				  mapping_gfp_constraint(mapping, GFP_KERNEL));
	if (unlikely(error))
		lbio_count(error == -EEXIST ? LBIO_EV_PRESENT :
					      LBIO_EV_NO_MEMORY);
	return error;
}

/* Submits the read and inserts the folio, in whichever order is safe. */
static bool lbio_start(struct lbio_io *io, const struct lbio_extent *extent,
		       struct address_space *mapping, sector_t sector,
		       pgoff_t index, bool *valid, bool *inserted)
{
	struct lbio_queue *queue = io->queue;
	struct lbio_extent again;
	enum lbio_event why;
	bool sent;

	spin_lock(&queue->sq_lock);
	if (unlikely(!queue->live)) {
		spin_unlock(&queue->sq_lock);
		lbio_count(LBIO_EV_STOPPED);
		return false;
	}
	if (unlikely(!lbio_take_page(io))) {
		spin_unlock(&queue->sq_lock);
		lbio_count(LBIO_EV_NO_PAGE);
		lbio_pool_refill(queue);
		return false;
	}
	if (likely(extent->quiet)) {
		sent = lbio_submit(io, sector);
		spin_unlock(&queue->sq_lock);
		if (unlikely(!sent)) {
			lbio_count(LBIO_EV_FULL);
			goto discard;
		}
		*inserted = !lbio_insert(io, mapping, index);
		/* Pairs with the barrier of whoever counts an open. */
		smp_mb();
		*valid = *inserted &&
			 atomic_read(extent->opens) == extent->seen;
		if (*inserted && !*valid)
			lbio_count(LBIO_EV_CHANGED);
		return true;
	}

	spin_unlock(&queue->sq_lock);
	lbio_count(LBIO_EV_EARLY);
	if (lbio_insert(io, mapping, index))
		goto discard;
	*inserted = true;
	*valid = true;
	/* Where the page was before the folio was locked is hearsay. */
	why = LBIO_EV_UNMAPPED;
	if (!lbio_map(mapping->host, index, &again) ||
	    again.sector != extent->sector)
		goto count;
	spin_lock(&queue->sq_lock);
	why = queue->live ? LBIO_EV_FULL : LBIO_EV_STOPPED;
	sent = queue->live && lbio_submit(io, sector);
	spin_unlock(&queue->sq_lock);
	if (likely(sent))
		return true;
count:
	lbio_count(why);
discard:
	lbio_discard(io->folio, *inserted);
	lbio_put_page(io);
	return false;
}

/**
 * lbio_read_miss - read a page that is not in the page cache
 * @iocb: a buffered read of no more than this page, whose file opted in
 * @mapping: the file's mapping
 * @index: the page
 * @accessed: set to whether the file's access time needs no update
 *
 * Return: the folio, up to date and with a reference for the caller; or NULL if
 * the ordinary path has to do it, for whatever reason.
 */
struct folio *lbio_read_miss(struct kiocb *iocb, struct address_space *mapping,
			     pgoff_t index, bool *accessed)
{
	struct inode *inode = mapping->host;
	struct block_device *bdev = inode->i_sb->s_bdev;
	bool valid = false, inserted = false;
	struct lbio_extent extent;
	struct request_queue *q;
	struct folio *folio = NULL;
	struct lbio_io io;
	unsigned long start;
	unsigned int noio;
	sector_t sector;
	int status;

	if ((iocb->ki_flags & (IOCB_NOWAIT | IOCB_NOIO | IOCB_WAITQ |
			       IOCB_DONTCACHE)) ||
	    !bdev || !lbio_may_map(iocb->ki_filp))
		return NULL;
	q = bdev_get_queue(bdev);
	if (!lbio_find_ns(bdev)) {
		lbio_count(LBIO_EV_NO_DEV);
		return NULL;
	}
	if (unlikely(lbio_is_watched(q))) {
		lbio_count(LBIO_EV_SHARED);
		return NULL;
	}
	if (lbio_is_sequential(iocb->ki_filp, mapping, index)) {
		lbio_count(LBIO_EV_SEQUENTIAL);
		return NULL;
	}

	if (unlikely(!filemap_invalidate_trylock_shared(mapping))) {
		lbio_count(LBIO_EV_INVALIDATING);
		return NULL;
	}
	if (unlikely(!lbio_map(inode, index, &extent) ||
		     extent.sector + PAGE_SECTORS > bdev_nr_sectors(bdev))) {
		lbio_count(LBIO_EV_UNMAPPED);
		goto unlock;
	}
	sector = extent.sector + bdev->bd_start_sect;

	/*
	 * From here on reset, removal and reformatting wait for this read, which
	 * therefore must not wait for other I/O of the drive, as reclaim may.
	 */
	noio = memalloc_noio_save();
	if (unlikely(!percpu_ref_tryget_live(&q->q_usage_counter))) {
		lbio_count(LBIO_EV_FROZEN);
		goto restore;
	}
	io.ns = lbio_find_ns(bdev);
	io.queue = NULL;
	if (likely(io.ns))
		io.queue = READ_ONCE(io.ns->dev->map[raw_smp_processor_id()]);
	if (unlikely(!io.queue || !lbio_may_use_pool(io.queue))) {
		lbio_count(LBIO_EV_STOPPED);
		goto put_queue;
	}
	if (unlikely(!lbio_start(&io, &extent, mapping, sector, index, &valid,
				 &inserted)))
		goto put_queue;
	filemap_invalidate_unlock_shared(mapping);

	/* The drive is at work. */
	start = bdev_start_io_acct(bdev, REQ_OP_READ, jiffies);
	task_io_account_read(PAGE_SIZE);
	/* Updating it may wait for the journal, and so for the drive. */
	*accessed = (iocb->ki_filp->f_flags & O_NOATIME) ||
		    !atime_needs_update(&iocb->ki_filp->f_path, inode);
	count_vm_events(PGPGIN, PAGE_SECTORS);
	if (unlikely(!list_empty_careful(&io.queue->full)))
		lbio_pool_unmap_idle(io.queue);
	if (unlikely(io.last))
		lbio_pool_refill(io.queue);

	status = lbio_wait(&io, inode);

	dma_sync_single_for_cpu(io.queue->dev->dma_dev, io.dma, PAGE_SIZE,
				DMA_FROM_DEVICE);
	lbio_put_page(&io);
	bdev_end_io_acct(bdev, REQ_OP_READ, PAGE_SECTORS, start);
	percpu_ref_put(&q->q_usage_counter);
	memalloc_noio_restore(noio);

	if (likely(valid && !status)) {
		lbio_count(LBIO_EV_READ);
		folio = io.folio;
		folio_end_read(folio, true);
		return folio;
	}
	if (status)
		lbio_count(status == LBIO_CANCELLED ? LBIO_EV_CANCELLED :
						       LBIO_EV_ERROR);
	lbio_discard(io.folio, inserted);
	return NULL;

put_queue:
	percpu_ref_put(&q->q_usage_counter);
restore:
	memalloc_noio_restore(noio);
unlock:
	filemap_invalidate_unlock_shared(mapping);
	return folio;
}
