/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Sending a read: what reads of files (read.c) and of block devices (raw.c) have
 * in common, and inlined.
 */
#ifndef BLOCK_LBIO_SUBMIT_H
#define BLOCK_LBIO_SUBMIT_H

#include <linux/blkdev.h>
#include <linux/cpuset.h>
#include <linux/mm.h>
#include <linux/sched.h>

#include "../blk-rq-qos.h"
#include "internal.h"
#include "trace.h"

/* Whether requests to @q are looked at by somebody whom LBIO would bypass. */
static inline bool lbio_is_watched(struct request_queue *q)
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
 * Whether the drive takes a read of @nr pages of @io's block device, and if so
 * its namespace and queue; else why not.
 *
 * From here on reset, removal and reformatting wait for the read, which must
 * therefore not wait for other I/O of the drive, as reclaim may: what allocates
 * does without it (NOIO). lbio_exit_queue() ends that.
 */
static __always_inline bool lbio_enter_queue(struct lbio_io *io,
					     const struct lbio_ns **ns,
					     pgoff_t nr, enum lbio_event *why)
{
	struct request_queue *q = bdev_get_queue(io->bdev);
	struct lbio_dev *dev;

	*why = LBIO_EV_FROZEN;
	if (unlikely(!percpu_ref_tryget_live(&q->q_usage_counter)))
		return false;
	*why = LBIO_EV_NO_DEV;
	dev = lbio_find_ns(io->bdev, ns);
	if (!dev)
		goto exit_queue;
	*why = LBIO_EV_SHARED;
	if (unlikely(lbio_is_watched(q)))
		goto exit_queue;
	*why = LBIO_EV_STOPPED;
	io->queue = raw_cpu_read(*dev->map);
	if (unlikely(!io->queue))
		goto exit_queue;
	/* Unmapped one by one they would cost more than by the ordinary path. */
	*why = LBIO_EV_NO_PAGE;
	if (unlikely(nr > 1 && !dev->lazy))
		goto exit_queue;
	return true;

exit_queue:
	lbio_exit_queue(io->bdev);
	return false;
}

/* How many of @nr pages from @sector on one command may read; one at least. */
static inline unsigned int lbio_limit(struct block_device *bdev,
				      sector_t sector, pgoff_t nr)
{
	const struct queue_limits *lim;
	unsigned int sectors;

	lim = &bdev_get_queue(bdev)->limits;
	sectors = queue_max_sectors(bdev_get_queue(bdev));
	/* Some drives are slow across a boundary. */
	if (lim->chunk_sectors)
		sectors = min(sectors,
			      blk_boundary_sectors_left(bdev->bd_start_sect +
							sector,
							lim->chunk_sectors));
	return clamp(sectors / PAGE_SECTORS, 1, nr);
}

/* Tasks may have asked for pages of other nodes than the pool's. */
static inline bool lbio_may_use(const struct page *page)
{
#ifdef CONFIG_NUMA
	return !current->mempolicy && !cpuset_do_page_mem_spread() &&
	       node_isset(page_to_nid(page), cpuset_current_mems_allowed);
#else
	return true;
#endif
}

/*
 * Notes from where @nr pages came, those from @index on of the queue's chunk. If
 * they were the last, the next read finds others. Says whether the pool needs
 * more, to one reader.
 */
static __always_inline void lbio_note_pages(struct lbio_io *io,
					    unsigned int index, unsigned int nr)
	__must_hold(&io->queue->sq_lock)
{
	struct lbio_queue *queue = io->queue;
	struct lbio_chunk *chunk = queue->chunk;
	unsigned int i;

	queue->used = true;
	io->chunk = chunk;
	io->nr = nr;
	for (i = 0; i < nr; i++)
		io->pages[i] = chunk->pages[index + i];
	io->dma = chunk->dma + ((dma_addr_t)index << PAGE_SHIFT);
	if (likely(chunk->nr >= index + nr + LBIO_MAX_PAGES))
		return;
	if (queue->next) {
		if (index + nr == chunk->nr)
			lbio_pool_advance(queue);
	} else if (!queue->refilling) {
		queue->refilling = true;
		io->low = true;
	}
}

/*
 * Takes @nr pages that are adjacent for the device, or fewer if the pool has not
 * so many, or none.
 */
static inline bool lbio_take_pages(struct lbio_io *io, unsigned int nr,
				   enum lbio_event *why)
	__must_hold(&io->queue->sq_lock)
{
	struct lbio_queue *queue = io->queue;
	int index = -ENOMEM;

	*why = LBIO_EV_STOPPED;
	if (unlikely(!queue->live))
		return false;
	if (likely(queue->chunk && lbio_may_use(queue->chunk->pages[0])))
		index = lbio_chunk_take(&queue->chunk->state, nr);
	if (unlikely(index < 0)) {
		lbio_pool_advance(queue);
		if (!queue->chunk || !lbio_may_use(queue->chunk->pages[0]))
			goto none;
		nr = min(nr, lbio_chunk_left(&queue->chunk->state));
		index = lbio_chunk_take(&queue->chunk->state, nr);
		if (index < 0)
			goto none;
	}
	lbio_note_pages(io, index, nr);
	return true;

none:
	io->low = true;
	*why = LBIO_EV_NO_PAGE;
	return false;
}

/* Notes that the drive was told of the read in @slot. */
static __always_inline void lbio_note_slot(struct lbio_io *io, u16 slot,
					   sector_t sector)
	__must_hold(&io->queue->sq_lock)
{
	struct lbio_queue *queue = io->queue;

	io->slot = slot;
	queue->started[slot] = jiffies;
	if (unlikely(!queue->ticking))
		lbio_start_tick(queue);
	trace_lbio_submit(io, sector);
}

/*
 * Takes a page and submits a read into it, in one step and with all that can
 * wait behind the doorbell. If not all is there for that, it does nothing.
 */
static __always_inline bool lbio_submit_page(struct lbio_io *io,
					     const struct lbio_ns *ns,
					     sector_t sector)
{
	struct lbio_queue *queue = io->queue;
	struct lbio_chunk *chunk;
	s64 entry = -ENOMEM;
	unsigned int shift;

	spin_lock(&queue->sq_lock);
	chunk = queue->chunk;
	if (unlikely(!queue->live || !chunk || !lbio_may_use(chunk->pages[0])))
		goto unlock;
	shift = ns->lba_shift - SECTOR_SHIFT;
	entry = lbio_ring_read_page(queue->ring, &chunk->state,
				    chunk->dma >> PAGE_SHIFT, ns->nsid,
				    sector >> shift, PAGE_SECTORS >> shift);
	if (unlikely(entry < 0))
		goto unlock;
	queue->sq_doorbell(queue->hw, entry >> 16);
	lbio_note_pages(io, entry >> 32, 1);
	lbio_note_slot(io, entry, sector);
unlock:
	spin_unlock(&queue->sq_lock);
	return entry >= 0;
}

static inline bool lbio_submit(struct lbio_io *io, const struct lbio_ns *ns,
			       sector_t sector)
	__must_hold(&io->queue->sq_lock)
{
	struct lbio_queue *queue = io->queue;
	unsigned int shift = ns->lba_shift;
	s64 entry;

	entry = lbio_ring_submit(queue->ring, ns->nsid,
				 sector >> (shift - SECTOR_SHIFT),
				 (io->nr << PAGE_SHIFT) >> shift, io->dma,
				 io->nr);
	if (unlikely(entry < 0))
		return false;
	queue->sq_doorbell(queue->hw, entry >> 16);
	lbio_note_slot(io, entry, sector);
	return true;
}

/* As lbio_submit_page(), of @nr pages, or of fewer if the pool has not so many. */
static __always_inline bool lbio_submit_pages(struct lbio_io *io,
					      const struct lbio_ns *ns,
					      sector_t sector, unsigned int nr,
					      enum lbio_event *why)
{
	struct lbio_queue *queue = io->queue;
	bool taken, sent;

	spin_lock(&queue->sq_lock);
	taken = lbio_take_pages(io, nr, why);
	sent = likely(taken) && lbio_submit(io, ns, sector);
	spin_unlock(&queue->sq_lock);
	if (unlikely(taken && !sent)) {
		*why = LBIO_EV_FULL;
		lbio_put_pages(io, io->nr);
	}
	return sent;
}

/* What is left to do while the drive works. */
static __always_inline void lbio_sent(struct lbio_io *io)
{
	lbio_start_acct(io);
	if (unlikely(!list_empty_careful(&io->queue->full)))
		lbio_pool_unmap_idle(io->queue);
	if (unlikely(io->low))
		lbio_pool_refill(io->queue);
}

/* Nothing was sent. The next read may find pages. */
static inline void lbio_not_sent(struct lbio_io *io)
{
	if (io->low)
		lbio_pool_refill(io->queue);
	lbio_exit_queue(io->bdev);
}

#endif /* BLOCK_LBIO_SUBMIT_H */
