/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Sending a command: what reads of files (read.c) and of block devices (raw.c), and
 * writes (write.c), have in common, and inlined.
 */
#ifndef BLOCK_LBIO_SUBMIT_H
#define BLOCK_LBIO_SUBMIT_H

#include <linux/blkdev.h>
#include <linux/cpuset.h>
#include <linux/mm.h>
#include <linux/part_stat.h>
#include <linux/sched.h>
#include <linux/task_io_accounting_ops.h>
#include <linux/vmstat.h>

#include "../blk.h"
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
 * The controller of @bdev's drive, with a reference to the usage counter of its
 * request queue, or NULL and why not.
 *
 * From here on reset, removal and reformatting wait for the command, whose sender
 * must therefore not wait for other I/O of the drive, as reclaim may: what
 * allocates does without it (NOIO). lbio_exit_queue() ends that.
 */
static __always_inline struct lbio_dev *
lbio_enter_dev(struct block_device *bdev, const struct lbio_ns **ns,
	       enum lbio_event *why)
{
	struct request_queue *q = bdev_get_queue(bdev);
	struct lbio_dev *dev;

	*why = LBIO_EV_FROZEN;
	if (unlikely(!percpu_ref_tryget_live(&q->q_usage_counter)))
		return NULL;
	*why = LBIO_EV_NO_DEV;
	dev = lbio_find_ns(bdev, ns);
	if (!dev)
		goto exit_queue;
	*why = LBIO_EV_SHARED;
	if (unlikely(lbio_is_watched(q)))
		goto exit_queue;
	*why = LBIO_EV_STOPPED;
	return dev;

exit_queue:
	lbio_exit_queue(bdev);
	return NULL;
}

/*
 * Whether the drive takes a read of @nr pages of @io's block device, and if so
 * its namespace and queue; else why not. lbio_exit_queue() ends it.
 */
static __always_inline bool lbio_enter_queue(struct lbio_io *io,
					     const struct lbio_ns **ns,
					     pgoff_t nr, enum lbio_event *why)
{
	struct lbio_dev *dev = lbio_enter_dev(io->bdev, ns, why);

	if (!dev)
		return false;
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

/* Whether @nr pages from @sector on are whole logical blocks of the device. */
static inline bool lbio_is_inside(struct block_device *bdev, u8 lba_shift,
				  sector_t sector, unsigned int nr)
{
	sector_t mask = (1 << (lba_shift - SECTOR_SHIFT)) - 1;
	sector_t size = bdev_nr_sectors(bdev);

	return nr * PAGE_SECTORS <= size &&
	       sector <= size - nr * PAGE_SECTORS &&
	       !((bdev->bd_start_sect + sector) & mask);
}

/* How many of @nr pages from @sector on one command may transfer; at least one. */
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

/*
 * Accounting, as blk-mq's, but that it counts a command when it is sent: what is
 * left for the end is what must be there, and the time if there was any. Returns
 * when it began.
 */
static __always_inline unsigned long lbio_acct_begin(struct block_device *bdev,
						     enum req_op op,
						     unsigned int sectors)
{
	const int group = op_stat_group(op);
	unsigned long now = READ_ONCE(jiffies);

	part_stat_lock();
	/* Else somebody did, for the whole device, too. */
	if (unlikely(READ_ONCE(bdev->bd_stamp) != now))
		update_io_ticks(bdev, now, false);
	bdev_inc_in_flight(bdev, op);
	part_stat_inc(bdev, ios[group]);
	part_stat_add(bdev, sectors[group], sectors);
	part_stat_unlock();
	return now;
}

static __always_inline void lbio_acct_end(struct block_device *bdev,
					  enum req_op op, unsigned long start)
{
	unsigned long now = READ_ONCE(jiffies);

	part_stat_lock();
	if (unlikely(now != start)) {
		update_io_ticks(bdev, now, true);
		part_stat_add(bdev, nsecs[op_stat_group(op)],
			      jiffies_to_nsecs(now - start));
	}
	bdev_dec_in_flight(bdev, op);
	part_stat_unlock();
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

/* The watchdog looks after the command in @slot from now on. */
static __always_inline void lbio_watch_slot(struct lbio_queue *queue, u16 slot)
	__must_hold(&queue->sq_lock)
{
	queue->started[slot] = jiffies;
	if (unlikely(!queue->ticking))
		lbio_start_tick(queue);
}

/* Notes that the drive was told of the read in @slot. */
static __always_inline void lbio_note_slot(struct lbio_io *io, u16 slot,
					   sector_t sector)
	__must_hold(&io->queue->sq_lock)
{
	io->slot = slot;
	lbio_watch_slot(io->queue, slot);
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
	s32 entry = -ENOMEM;

	spin_lock(&queue->sq_lock);
	chunk = queue->chunk;
	/* Only a queue that is live has one. */
	if (unlikely(!chunk || !lbio_may_use(chunk->pages[0])))
		goto unlock;
	entry = lbio_ring_read_page(queue->ring, &chunk->state, ns, chunk->dma,
				    sector);
	if (unlikely(entry < 0))
		goto unlock;
	queue->sq_doorbell(queue->hw, entry >> 16);
	lbio_note_pages(io, lbio_chunk_taken(&chunk->state) - 1, 1);
	lbio_note_slot(io, entry, sector);
	/* The next one is likely to be such a read, too. */
	chunk = queue->chunk;
	if (likely(chunk))
		lbio_ring_prepare_page(queue->ring, &chunk->state, ns,
				       chunk->dma);
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
	s32 entry;

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
	unsigned int sectors = io->nr * PAGE_SECTORS;

	io->start = lbio_acct_begin(io->bdev, REQ_OP_READ, sectors);
	task_io_account_read(io->nr << PAGE_SHIFT);
	count_vm_events(PGPGIN, sectors);
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
