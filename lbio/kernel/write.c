// SPDX-License-Identifier: GPL-2.0
/*
 * A write of a file's dirty pages, or of its journal's blocks, without the block
 * layer.
 *
 * The file system builds a bio as ever, and asks here before it submits it. The bio
 * stays what it is: it is told of the end, by bio_endio(), and goes the ordinary way
 * if LBIO refuses. Only the way to the drive and back is another one.
 *
 * Who ends it. The writes of a task that will wait for them are a batch; without
 * such a task nothing is written here: background writeback goes the ordinary way. A
 * write is ended by whoever finds its completion: the interrupt handler; the task,
 * who polls a queue without interrupts, as do readers of that queue; or the watchdog.
 * The last one alone is enough for every write to end, within 375 ms, whatever the
 * task is waiting for meanwhile. Where that may be something that waits for his own
 * writes, as a commit does for ordered data, he says so (lbio_batch_unattended()), and
 * nothing is sent that only he would end in time.
 *
 * The rules:
 *
 * - Lifetime. Each write has a reference to the usage counter of the request queue
 *   until it has ended, so reset, removal, reformatting, and whoever else freezes
 *   the queue, wait for it (queue.c). The task has none between his writes: he
 *   submits ordinary bios, too, which wait while the queue is frozen, and freezing
 *   would wait for him. He takes one while he waits for his batch, which ends
 *   whatever the queue is.
 *
 * - Failure. A write that failed for whatever reason, the drive's error or a
 *   reset, is never reported: a worker submits its bio by the ordinary path, which
 *   tries again, and reports what there is to report. It first gives back its
 *   reference, as submission waits while the queue is frozen.
 *
 * - Order. A cancelled command may have been carried out, but will not be: it is
 *   cancelled when the controller is disabled. From submission until bio_endio(), so
 *   also between two attempts, the folio is under writeback, or the buffer locked,
 *   and nobody submits a newer write of it, frees its block, or writes to that
 *   directly.
 *
 * - Caches. FUA is carried in the command, where the drive has a cache and FUA; if
 *   it has a cache alone such a bio is refused, and so is one with PREFLUSH: flushes
 *   are never sent. Without a cache both mean nothing. What bio_endio() tells the
 *   file system is what it would tell it after a request, so what it knows of the
 *   drive's cache is as true.
 *
 * - Memory. The pages are the page cache's or the journal's, and mapped for each
 *   command by the DMA API, which costs what it costs blk-mq: some 1,100 instructions
 *   to map a page through an IOMMU, and 1,000 to unmap it. Nothing is allocated.
 *
 * - Whom blk-mq asks for leave. While an I/O scheduler, I/O control, throttling by
 *   cgroups or of writeback (wbt), tracing of requests, or the injection of errors is
 *   active on the drive, nothing is written here. Nor is what is encrypted inline,
 *   has integrity data or a write stream. A cgroup's io.stat counts these writes.
 */

#include <linux/bio.h>
#include <linux/blk-crypto.h>
#include <linux/blk-integrity.h>
#include <linux/blkdev.h>
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/export.h>
#include <linux/fault-inject.h>
#include <linux/mm.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sched/stat.h>
#include <linux/vmstat.h>

#include "../blk-cgroup.h"
#include "../blk-wbt.h"
#include "halt.h"
#include "internal.h"
#include "submit.h"
#include "trace.h"

/* Most writes of a batch in flight: half of a queue is left to others. */
#define LBIO_BATCH_MAX	(LBIO_SLOTS / 2)

/* Status of a write that was made to fail: write fault. */
#define LBIO_INJECTED	0x280

/* Which writes are taken for failed, for tests; none before somebody says so. */
static DECLARE_FAULT_ATTR(lbio_fail_writes);

/* The file system tests it inline. */
DEFINE_STATIC_KEY_FALSE(lbio_writes_key);
EXPORT_SYMBOL_GPL(lbio_writes_key);

void lbio_write_debugfs(struct dentry *root)
{
	fault_create_debugfs_attr("lbio_fail_writes", root, &lbio_fail_writes);
}

/* What is mapped of a write, before it has a slot. */
struct lbio_mapping {
	dma_addr_t dma;
	unsigned int nents;
	u64 pages[LBIO_MAX_PAGES];
	struct scatterlist sg[LBIO_MAX_PAGES];
};

/*
 * Whether @bio is of whole pages, and of none that is dropped when it is written:
 * by who ends the write, which takes locks that he may not.
 */
static bool lbio_has_plain_pages(struct bio *bio)
{
	struct bvec_iter iter;
	struct bio_vec bv;

	bio_for_each_segment(bv, bio, iter)
		if (bv.bv_offset || bv.bv_len != PAGE_SIZE ||
		    folio_test_dropbehind(page_folio(bv.bv_page)))
			return false;
	return true;
}

/*
 * Whether a command can say all that @bio does, but for hints to schedulers and where
 * the bio itself goes in the end.
 */
static bool lbio_is_fit(struct bio *bio)
{
	const blk_opf_t carried = REQ_OP_MASK | REQ_SYNC | REQ_IDLE | REQ_META |
				  REQ_PRIO | REQ_FUA | REQ_ALLOC_CACHE;
	unsigned int size = bio->bi_iter.bi_size;

	return bio_op(bio) == REQ_OP_WRITE && !(bio->bi_opf & ~carried) &&
	       size && size <= LBIO_MAX_PAGES << PAGE_SHIFT &&
	       IS_ALIGNED(size, PAGE_SIZE) && !bio->bi_write_stream &&
	       !bio_has_crypt_ctx(bio) &&
	       !bio_integrity(bio) &&
	       !bio_flagged(bio, BIO_COMPLETE_IN_TASK) &&
	       !bio_flagged(bio, BIO_CLONED) && lbio_has_plain_pages(bio);
}

/* Whether somebody looks at writes to the drive whom LBIO would bypass. */
static bool lbio_is_write_watched(struct block_device *bdev)
{
#ifdef CONFIG_BLK_WBT
	struct request_queue *q = bdev_get_queue(bdev);

	if (q->rq_qos && !wbt_disabled(q))
		return true;
#endif
#ifdef CONFIG_FAIL_MAKE_REQUEST
	if (bdev_test_flag(bdev_whole(bdev), BD_MAKE_IT_FAIL) ||
	    bdev_test_flag(bdev, BD_MAKE_IT_FAIL))
		return true;
#endif
	return IS_ENABLED(CONFIG_BLK_ERROR_INJECTION) &&
	       test_bit(GD_ERROR_INJECT, &bdev->bd_disk->state);
}

/* Whether the drive of @bdev takes what @bio says. */
static bool lbio_takes(struct block_device *bdev, const struct lbio_ns *ns,
		       const struct bio *bio, unsigned int nr)
{
	sector_t sector = bio->bi_iter.bi_sector;

	if (bio->bi_opf & REQ_FUA && !(bdev_write_cache(bdev) && bdev_fua(bdev)))
		return false;
	return !bdev_read_only(bdev) && !blk_get_integrity(bdev->bd_disk) &&
	       lbio_is_inside(bdev, ns->lba_shift, sector, nr) &&
	       lbio_limit(bdev, sector, nr) == nr;
}

static void lbio_unmap(struct device *dma_dev, dma_addr_t dma,
		       struct scatterlist *sg, unsigned int nents,
		       unsigned int size)
{
	if (likely(nents == 1))
		dma_unmap_page(dma_dev, dma, size, DMA_TO_DEVICE);
	else
		dma_unmap_sg(dma_dev, sg, nents, DMA_TO_DEVICE);
}

/* Puts the addresses of the pages from @dma on behind the @nr that are there. */
static unsigned int lbio_add_pages(struct lbio_mapping *map, unsigned int nr,
				   dma_addr_t dma, unsigned int len)
{
	for (; len >= PAGE_SIZE && nr < LBIO_MAX_PAGES; len -= PAGE_SIZE) {
		map->pages[nr++] = dma;
		dma += PAGE_SIZE;
	}
	return nr;
}

/* Maps the ranges of @bio. Returns for how many pages, 0 if it failed. */
static unsigned int lbio_map_bio(struct device *dma_dev, struct bio *bio,
				 struct lbio_mapping *map)
{
	unsigned int i = 0, nr = 0;
	struct scatterlist *sg;
	struct bvec_iter iter;
	struct bio_vec bv;
	int nents;

	if (likely(map->nents == 1)) {
		bv = mp_bvec_iter_bvec(bio->bi_io_vec, bio->bi_iter);
		map->dma = dma_map_page(dma_dev, bv.bv_page, bv.bv_offset,
					bv.bv_len, DMA_TO_DEVICE);
		if (dma_mapping_error(dma_dev, map->dma))
			return 0;
		return lbio_add_pages(map, 0, map->dma, bv.bv_len);
	}
	map->dma = 0;
	sg_init_table(map->sg, map->nents);
	bio_for_each_bvec(bv, bio, iter)
		sg_set_page(&map->sg[i++], bv.bv_page, bv.bv_len,
			    bv.bv_offset);
	/* Fewer than ranges, if some are adjacent for the device now. */
	nents = dma_map_sg(dma_dev, map->sg, map->nents, DMA_TO_DEVICE);
	for_each_sg(map->sg, sg, nents, i)
		nr = lbio_add_pages(map, nr, sg_dma_address(sg),
				    sg_dma_len(sg));
	return nr;
}

/* Notes what the one who ends the write in @slot has to know. */
static struct lbio_write *lbio_note_write(struct lbio_queue *queue, u16 slot,
					  struct lbio_batch *batch,
					  struct bio *bio,
					  const struct lbio_mapping *map)
	__must_hold(&queue->sq_lock)
{
	struct lbio_write *write = &queue->writes[slot];

	write->queue = queue;
	write->batch = batch;
	write->bio = bio;
	write->dma = map->dma;
	write->slot = slot;
	write->nents = map->nents;
	if (unlikely(map->nents > 1))
		memcpy(write->sg, map->sg, map->nents * sizeof(*map->sg));
	return write;
}

/* Tells the drive of @bio, of @nr pages. From then on others may have ended it. */
static bool lbio_send(struct lbio_queue *queue, const struct lbio_ns *ns,
		      struct lbio_batch *batch, struct bio *bio,
		      const struct lbio_mapping *map, unsigned int nr,
		      enum lbio_event *why)
{
	struct block_device *bdev = bio->bi_bdev;
	unsigned int shift = ns->lba_shift - SECTOR_SHIFT;
	sector_t sector = bio->bi_iter.bi_sector + bdev->bd_start_sect;
	int slot, tail = -EINVAL;
	struct lbio_write *write;
	unsigned long start;

	spin_lock(&queue->sq_lock);
	*why = LBIO_EV_STOPPED;
	if (unlikely(!queue->live))
		goto unlock;
	*why = LBIO_EV_FULL;
	slot = lbio_ring_alloc(queue->ring);
	if (unlikely(slot < 0))
		goto unlock;
	write = lbio_note_write(queue, slot, batch, bio, map);
	/* All this before anybody can end the write: then the bio is gone. */
	atomic_add(LBIO_BATCH_WRITE, &batch->pending);
	write->start = lbio_acct_begin(bdev, REQ_OP_WRITE, nr * PAGE_SECTORS);
	start = write->start;
	blk_cgroup_bio_start(bio);
	trace_lbio_write_submit(bio, slot, sector);
	tail = lbio_ring_write(queue->ring, slot,
			       (unsigned long)write | LBIO_TOKEN_WRITE,
			       ns->nsid, sector >> shift,
			       (nr * PAGE_SECTORS) >> shift, map->pages, nr,
			       bio->bi_opf & REQ_FUA);
	if (unlikely(tail < 0)) {
		*why = LBIO_EV_NO_PAGE;
		lbio_acct_end(bdev, REQ_OP_WRITE, start);
		atomic_sub(LBIO_BATCH_WRITE, &batch->pending);
		goto unlock;
	}
	lbio_watch_slot(queue, slot);
	queue->sq_doorbell(queue->hw, tail);
unlock:
	spin_unlock(&queue->sq_lock);
	return tail >= 0;
}

/* The queue that @batch uses, of @dev's. */
static struct lbio_queue *lbio_batch_queue(const struct lbio_batch *batch,
					   const struct lbio_dev *dev)
{
	struct lbio_queue *queue = batch->queue ?: raw_cpu_read(*dev->map);

	if (unlikely(!queue || queue->dev != dev))
		return NULL;
	/* Nobody would end the write soon. */
	if (queue->polled && batch->unattended)
		return NULL;
	return queue;
}

static bool lbio_start_write(struct lbio_batch *batch, struct bio *bio,
			     enum lbio_event *why)
{
	unsigned int nr = bio->bi_iter.bi_size >> PAGE_SHIFT;
	/* All that is read of it is written before. */
	struct lbio_mapping map __uninitialized;
	struct block_device *bdev = bio->bi_bdev;
	const struct lbio_ns *ns;
	struct lbio_queue *queue;
	struct lbio_dev *dev;
	unsigned int mapped;

	*why = LBIO_EV_UNFIT;
	/* As submit_bio() will do if the bio is refused. */
	if (op_is_flush(bio->bi_opf) && !bdev_write_cache(bdev))
		bio->bi_opf &= ~(REQ_PREFLUSH | REQ_FUA);
	if (!lbio_is_fit(bio) || (batch->bdev && batch->bdev != bdev))
		return false;
	map.nents = bio->bi_vcnt;
	*why = LBIO_EV_FULL;
	if (atomic_read(&batch->pending) >= LBIO_BATCH_MAX * LBIO_BATCH_WRITE)
		return false;

	dev = lbio_enter_dev(bdev, &ns, why);
	if (!dev)
		return false;
	*why = LBIO_EV_SHARED;
	if (unlikely(lbio_is_write_watched(bdev)))
		goto exit_queue;
	*why = LBIO_EV_STOPPED;
	queue = lbio_batch_queue(batch, dev);
	if (unlikely(!queue))
		goto exit_queue;
	*why = LBIO_EV_UNFIT;
	if (unlikely(!lbio_takes(bdev, ns, bio, nr)))
		goto exit_queue;
	*why = LBIO_EV_NO_PAGE;
	mapped = lbio_map_bio(dev->dma_dev, bio, &map);
	if (unlikely(!mapped))
		goto exit_queue;

	/* Before it is sent: who ends the batch's writes does not look at these. */
	batch->bdev = bdev;
	batch->queue = queue;
	batch->polled = queue->polled;
	batch->fua = bio->bi_opf & REQ_FUA;
	if (likely(mapped == nr) &&
	    likely(lbio_send(queue, ns, batch, bio, &map, nr, why))) {
		batch->pages += nr;
		count_vm_events(PGPGOUT, nr * PAGE_SECTORS);
		return true;
	}
	lbio_unmap(dev->dma_dev, map.dma, map.sg, map.nents,
		   nr << PAGE_SHIFT);

exit_queue:
	lbio_exit_queue(bdev);
	return false;
}

/**
 * lbio_write - write without the block layer
 * @batch: the caller's batch
 * @bio: what is written; as it is for submit_bio(), of a file or of a journal
 *
 * May be called wherever bios are submitted; does not sleep. The caller waits for
 * the batch, soon, and says so before he waits for anything that may wait for the
 * write.
 *
 * Return: whether the drive was told; the bio ends as after submit_bio(), from
 * any context. Otherwise it is as it was, and the caller's to submit.
 */
bool lbio_write(struct lbio_batch *batch, struct bio *bio)
{
	enum lbio_event why;

	if (likely(lbio_start_write(batch, bio, &why)))
		return true;
	batch->partial = true;
	lbio_count(why);
	trace_lbio_write_fallback(bio, why);
	return false;
}
EXPORT_SYMBOL_GPL(lbio_write);

/* Leaves @bio, whose write failed, to the ordinary path. */
static void lbio_rewrite(struct lbio_queue *queue, struct bio *bio)
{
	unsigned long flags;

	lbio_count(LBIO_EV_REWRITE);
	spin_lock_irqsave(&queue->cq_lock, flags);
	bio_list_add(&queue->rewrites, bio);
	spin_unlock_irqrestore(&queue->cq_lock, flags);
	queue_work(queue->dev->workqueue, &queue->rewrite_work);
}

/* Submits what failed. While the request queue is frozen that waits. */
void lbio_rewrite_work(struct work_struct *work)
{
	struct lbio_queue *queue =
		container_of(work, struct lbio_queue, rewrite_work);
	struct bio_list bios;
	struct bio *bio;

	spin_lock_irq(&queue->cq_lock);
	bios = queue->rewrites;
	bio_list_init(&queue->rewrites);
	spin_unlock_irq(&queue->cq_lock);
	while ((bio = bio_list_pop(&bios)))
		submit_bio(bio);
}

/* One write less to wait for. The batch may be gone then. */
static void lbio_batch_end(struct lbio_batch *batch)
{
	struct task_struct *task = batch->task;

	/* Tasks are freed after a grace period. */
	rcu_read_lock();
	if (atomic_fetch_sub_release(LBIO_BATCH_WRITE, &batch->pending) ==
	    (LBIO_BATCH_WRITE | LBIO_BATCH_ASLEEP))
		wake_up_process(task);
	rcu_read_unlock();
}

static void lbio_end_write(struct lbio_write *write)
{
	struct lbio_queue *queue = write->queue;
	struct lbio_batch *batch = write->batch;
	unsigned long start = write->start;
	struct bio *bio = write->bio;
	struct block_device *bdev = bio->bi_bdev;
	struct request_queue *q = bdev_get_queue(bdev);
	u16 slot = write->slot;
	int status;

	lbio_unmap(queue->dev->dma_dev, write->dma, write->sg, write->nents,
		   bio->bi_iter.bi_size);
	/* Then @write may be another one's. */
	status = lbio_ring_take(queue->ring, slot);
	if (unlikely(should_fail(&lbio_fail_writes, bio->bi_iter.bi_size)))
		status = LBIO_INJECTED;
	trace_lbio_write_complete(bio, slot, status);
	lbio_acct_end(bdev, REQ_OP_WRITE, start);
	if (likely(!status)) {
		lbio_count(LBIO_EV_WRITE);
		bio_endio(bio);
	} else {
		lbio_count(status == LBIO_CANCELLED ? LBIO_EV_CANCELLED :
						      LBIO_EV_ERROR);
		lbio_rewrite(queue, bio);
	}
	lbio_batch_end(batch);
	/* The last step: up to here the queue stays, and who waits may use it. */
	percpu_ref_put(&q->q_usage_counter);
}

/* Ends writes that are complete: @write and those behind it. Any context. */
void lbio_end_writes(struct lbio_write *write)
{
	struct lbio_write *next;

	for (; write; write = next) {
		next = write->next;
		lbio_end_write(write);
	}
}

/*
 * The waiting loop, in a function of its own so that a profile tells waiting
 * from working. Returns whether all writes have ended.
 */
static noinline bool lbio_spin_batch(struct lbio_batch *batch,
				     struct aios_poll *poll)
{
	struct lbio_queue *queue = batch->queue;

	for (;;) {
		/* An interrupt takes the completion before a poll could. */
		if (queue->polled)
			lbio_reap(queue);
		if (!atomic_read_acquire(&batch->pending))
			return true;
		if (need_resched() || signal_pending(current) ||
		    !single_task_running())
			return false;
		if (aios_poll_is_over(poll))
			return false;
		if (lbio_may_halt(queue))
			lbio_halt(!atomic_read_acquire(&batch->pending));
		else
			aios_spin_relax();
	}
}

/* Waits without spinning. */
static void lbio_sleep_batch(struct lbio_batch *batch, struct aios_poll *poll)
{
	struct lbio_queue *queue = batch->queue;
	unsigned int nap = LBIO_NAP_MIN;

	if (!atomic_read_acquire(&batch->pending))
		return;
	lbio_count(LBIO_EV_SLEPT);
	aios_poll_sleep(poll);
	while (queue->polled) {
		usleep_range_state(nap, 2 * nap, TASK_UNINTERRUPTIBLE);
		nap = min(2 * nap, LBIO_NAP_MAX);
		lbio_reap(queue);
		if (!atomic_read_acquire(&batch->pending))
			return;
	}
	for (;;) {
		set_current_state(TASK_UNINTERRUPTIBLE);
		/* Whoever ends the last write after this wakes the task. */
		if (atomic_fetch_or(LBIO_BATCH_ASLEEP, &batch->pending) <
		    LBIO_BATCH_WRITE)
			break;
		io_schedule();
	}
	__set_current_state(TASK_RUNNING);
	atomic_set(&batch->pending, 0);
}

/* As lbio_batch_wait(), of some writes. */
void __lbio_batch_wait(struct lbio_batch *batch)
{
	struct request_queue *q = bdev_get_queue(batch->bdev);
	unsigned int size = min(batch->pages, LBIO_MAX_PAGES);
	/* All that is read of it is written before. */
	struct aios_poll poll __uninitialized;

	might_sleep();
	batch->pages = 0;
	/* They may have ended before anybody waited; that teaches nothing. */
	if (!atomic_read_acquire(&batch->pending))
		return;
	/*
	 * As long as there is a reference the batch's queue stays. A write has
	 * one until it has ended, so if there is none to be had, all have ended.
	 */
	if (unlikely(!percpu_ref_tryget(&q->q_usage_counter))) {
		while (atomic_read_acquire(&batch->pending))
			cpu_relax();
		return;
	}
	if (aios_poll_begin(&poll,
			    &batch->queue->write_poll[batch->fua][ilog2(size)]) &&
	    likely(lbio_spin_batch(batch, &poll))) {
		aios_poll_hit(&poll);
	} else {
		lbio_sleep_batch(batch, &poll);
		aios_poll_slept(&poll);
	}
	percpu_ref_put(&q->q_usage_counter);
}
EXPORT_SYMBOL_GPL(__lbio_batch_wait);
