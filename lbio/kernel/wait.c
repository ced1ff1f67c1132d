// SPDX-License-Identifier: GPL-2.0
/*
 * Waiting for a read, and what is to do when the drive has answered.
 *
 * A reader spins, then sleeps. If he is killed while he sleeps, the read is left
 * to its queue ("orphaned"): the drive still writes to the pages, and somebody
 * has to unlock them. A worker does what is left to do as the reader would have
 * done it. The pages of such a read are in the page cache, locked: whoever takes
 * the file or its file system away waits for them as for any folio under read,
 * and whoever takes the drive away waits for the usage counter that the read
 * keeps.
 *
 * A fault comes with a lock, its VMA's or the process's mmap_lock, shared. Who
 * wants to change mappings waits for it, and everybody else of the process behind
 * him. So nobody sleeps with it: it is dropped before, by the ordinary path's
 * means, and the fault is made again when the page is there. That is a second walk
 * through the fault handler, of more instructions than all of the read. While the
 * fault spins it keeps the lock: not for longer than poll_max_ns, and until
 * somebody waits for it. Where it may not be dropped (a second attempt, a caller
 * who does not retry) it is kept asleep, too, as the ordinary path does.
 */

#include <linux/blkdev.h>
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/delayacct.h>
#include <linux/dma-mapping.h>
#include <linux/fault-inject.h>
#include <linux/mm.h>
#include <linux/mmap_lock.h>
#include <linux/pagemap.h>
#include <linux/psi.h>
#include <linux/sched.h>
#include <linux/sched/clock.h>
#include <linux/sched/signal.h>
#include <linux/sched/stat.h>

#include "halt.h"
#include "internal.h"
#include "submit.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

/* Status of a read that was made to fail: unrecovered read error. */
#define LBIO_INJECTED	0x281

/* Which reads are taken for failed, for tests; none before somebody says so. */
static DECLARE_FAULT_ATTR(lbio_fail);

void lbio_io_debugfs(struct dentry *root)
{
	fault_create_debugfs_attr("lbio_fail", root, &lbio_fail);
}

/* The device is done with the last @nr pages, or was never told of them. */
void lbio_put_pages(struct lbio_io *io, unsigned int nr)
{
	if (likely(io->queue->dev->lazy))
		lbio_chunk_finish(&io->chunk->state, nr);
	else
		lbio_pool_unmap(io->queue, io->chunk);
}

static __always_inline void lbio_end_page(const struct lbio_io *io,
					  unsigned int i, unsigned int good)
{
	struct folio *folio = lbio_folio(io, i);

	if (likely(io->inserted & BIT(i)))
		folio_end_read(folio, good & BIT(i));
	if (unlikely(!(good & BIT(i))))
		folio_put(folio);
}

/*
 * Ends a read that is complete with @status: all that has to be done before
 * anybody may look at the pages. Returns the status that counts.
 */
static __always_inline int lbio_end(struct lbio_io *io, int status)
{
	if (unlikely(should_fail(&lbio_fail, (ssize_t)io->nr << PAGE_SHIFT)))
		status = LBIO_INJECTED;
	trace_lbio_complete(io, status);
	/* In strict mode the pages are unmapped here, which is more than that. */
	if (likely(io->queue->dev->lazy))
		dma_sync_single_for_cpu(io->queue->dev->dma_dev, io->dma,
					(size_t)io->nr << PAGE_SHIFT,
					DMA_FROM_DEVICE);
	lbio_put_pages(io, io->nr);
	lbio_acct_end(io->bdev, REQ_OP_READ, io->start);
	lbio_exit_queue(io->bdev);
	return status;
}

static void lbio_count_failure(int status)
{
	lbio_count(status == LBIO_CANCELLED ? LBIO_EV_CANCELLED :
					      LBIO_EV_ERROR);
}

/*
 * Ends a read for the page cache that is complete with @status, and unlocks the
 * folios. Returns those that may be seen, as bits; the read's references to them
 * are the caller's. The others are not up to date, and whoever comes for them
 * reads them by the ordinary path: the mapping may be gone as soon as the last
 * one is unlocked, so none is removed here.
 */
static unsigned int lbio_finish(struct lbio_io *io, int status)
{
	unsigned int good = 0;
	unsigned int i;

	status = lbio_end(io, status);
	if (likely(!status && io->valid && io->inserted)) {
		good = io->inserted;
		lbio_count(LBIO_EV_READ);
	} else if (status) {
		lbio_count_failure(status);
	}
	/* Of one page without a loop. */
	lbio_end_page(io, 0, good);
	for (i = 1; i < io->nr; i++)
		lbio_end_page(io, i, good);
	return good;
}

/* Takes a complete read of a killed reader. */
static bool lbio_adopt(struct lbio_queue *queue, struct lbio_io *io,
		       int *status)
{
	unsigned int slot;
	bool found = false;

	spin_lock(&queue->sq_lock);
	for_each_set_bit(slot, &queue->orphaned, LBIO_SLOTS) {
		*status = lbio_ring_take(queue->ring, slot);
		if (*status == -EINPROGRESS)
			continue;
		__clear_bit(slot, &queue->orphaned);
		*io = queue->orphans[slot];
		found = true;
		break;
	}
	spin_unlock(&queue->sq_lock);
	return found;
}

/* Ends what readers who were killed left behind and the drive has answered. */
void lbio_orphan_work(struct work_struct *work)
{
	struct lbio_queue *queue =
		container_of(work, struct lbio_queue, orphan_work);
	unsigned int good, i;
	struct lbio_io io;
	int status;

	while (lbio_adopt(queue, &io, &status)) {
		good = lbio_finish(&io, status);
		for (i = 0; i < io.nr; i++)
			if (good & BIT(i))
				folio_put(lbio_folio(&io, i));
	}
}

/*
 * Leaves the read to the queue, unless it is complete. Who completes it wakes
 * the worker, which has to wait for the lock until the read is where it looks.
 */
static bool lbio_abandon(struct lbio_io *io)
{
	struct lbio_queue *queue = io->queue;
	u64 self = (unsigned long)current;
	u64 token = (unsigned long)queue | LBIO_TOKEN_QUEUE;
	bool left;

	spin_lock(&queue->sq_lock);
	queue->orphans[io->slot] = *io;
	left = lbio_ring_sleep(queue->ring, io->slot, self) &&
	       lbio_ring_hand_over(queue->ring, io->slot, self, token);
	if (left)
		__set_bit(io->slot, &queue->orphaned);
	spin_unlock(&queue->sq_lock);
	return left;
}

/* Whether somebody waits for the lock that the fault holds. */
static bool lbio_fault_is_contended(const struct vm_fault *vmf)
{
#ifdef CONFIG_PER_VMA_LOCK
	if (vmf->flags & FAULT_FLAG_VMA_LOCK)
		return refcount_read(&vmf->vma->vm_refcnt) &
		       VM_REFCNT_EXCLUDE_READERS_FLAG;
#endif
	return mmap_lock_is_contended(vmf->vma->vm_mm);
}

/*
 * Drops the fault's lock, if the fault can be made again. The file is kept: the
 * mapping may be gone now.
 */
static void lbio_unlock_fault(struct lbio_io *io)
{
	if (!fault_flag_allow_retry_first(io->vmf->flags))
		return;
	io->fpin = get_file(io->vmf->vma->vm_file);
	release_fault_lock(io->vmf);
}

/*
 * The waiting loop, in a function of its own so that a profile tells waiting
 * from working. Returns the status, or -EINPROGRESS.
 */
static noinline int lbio_spin_slot(struct lbio_io *io, struct aios_poll *poll)
{
	struct lbio_queue *queue = io->queue;
	int status;

	for (;;) {
		/* An interrupt takes the completion before a poll could. */
		if (queue->polled)
			lbio_reap(queue);
		status = lbio_ring_take(queue->ring, io->slot);
		if (status != -EINPROGRESS)
			return status;
		if (need_resched() || signal_pending(current) ||
		    !single_task_running())
			return status;
		if (io->vmf && lbio_fault_is_contended(io->vmf))
			return status;
		if (aios_poll_is_over(poll))
			return status;
		if (!io->vmf && lbio_may_halt(queue))
			lbio_halt(lbio_ring_is_done(queue->ring, io->slot));
		else
			aios_spin_relax();
	}
}

/*
 * Whether the reader may leave the read behind. What is not in the page cache is
 * for him alone to end: nobody who takes the file system away would wait for it,
 * and nobody would have the pages of a block device. Not every fault has a caller
 * who can go back.
 */
static bool lbio_is_killable(const struct lbio_io *io)
{
	return io->inserted &&
	       (!io->vmf || (io->vmf->flags & FAULT_FLAG_KILLABLE));
}

/*
 * Waits without spinning. Returns the status, or -EINTR if the reader was killed
 * and left the read.
 */
static int lbio_sleep(struct lbio_io *io, struct aios_poll *poll)
{
	struct lbio_queue *queue = io->queue;
	u64 token = (unsigned long)current;
	unsigned int nap = LBIO_NAP_MIN;
	unsigned int state;
	int status;

	/* It may be complete before anybody waited; that teaches nothing. */
	status = lbio_ring_take(queue->ring, io->slot);
	if (status != -EINPROGRESS)
		return status;
	lbio_count(LBIO_EV_SLEPT);
	aios_poll_sleep(poll);
	if (io->vmf)
		lbio_unlock_fault(io);
	state = lbio_is_killable(io) ? TASK_KILLABLE : TASK_UNINTERRUPTIBLE;
	for (;;) {
		if (!queue->polled)
			set_current_state(state);
		if (queue->polled ||
		    !lbio_ring_sleep(queue->ring, io->slot, token)) {
			__set_current_state(TASK_RUNNING);
			status = lbio_ring_take(queue->ring, io->slot);
			if (status != -EINPROGRESS)
				return status;
		}
		if (state == TASK_KILLABLE && fatal_signal_pending(current)) {
			__set_current_state(TASK_RUNNING);
			if (lbio_abandon(io)) {
				lbio_count(LBIO_EV_KILLED);
				return -EINTR;
			}
			continue;
		}
		if (queue->polled) {
			usleep_range_state(nap, 2 * nap, state);
			nap = min(2 * nap, LBIO_NAP_MAX);
			lbio_reap(queue);
		} else {
			io_schedule();
		}
	}
}

/* Returns the status, or -EINTR if the reader was killed and left the read. */
static int lbio_wait_slot(struct lbio_io *io)
{
	/* All that is read of it is written before. */
	struct aios_poll poll __uninitialized;
	int status;

	if (aios_poll_begin(&poll, &io->queue->poll[ilog2(io->nr)])) {
		status = lbio_spin_slot(io, &poll);
		if (likely(status != -EINPROGRESS)) {
			aios_poll_hit(&poll);
			return status;
		}
	}
	status = lbio_sleep(io, &poll);
	aios_poll_slept(&poll);
	return status;
}

/* As above, for pages that were in use when memory ran short: a stall for it. */
static noinline int lbio_wait_thrashing(struct lbio_io *io)
{
	unsigned long flags;
	bool nested;
	int status;

	delayacct_thrashing_start(&nested);
	psi_memstall_enter(&flags);
	status = lbio_wait_slot(io);
	psi_memstall_leave(&flags);
	delayacct_thrashing_end(&nested);
	return status;
}

/**
 * lbio_wait - wait for a read, and end it
 * @io: the read
 *
 * Return: the pages that may be seen, as bits, to each of which the caller has
 * a reference. None if the read failed or is not wanted; -EINTR if the reader was
 * killed and left it behind.
 */
int lbio_wait(struct lbio_io *io)
{
	int status;

	if (unlikely(io->thrashing))
		status = lbio_wait_thrashing(io);
	else
		status = lbio_wait_slot(io);
	if (unlikely(status == -EINTR))
		return status;
	return lbio_finish(io, status);
}

/**
 * lbio_wait_raw - wait for a read that is not for the page cache, and end it
 * @io: the read; nothing of it is inserted, so nobody is killed meanwhile
 *
 * Return: whether the pages have what was asked for.
 */
bool lbio_wait_raw(struct lbio_io *io)
{
	int status = lbio_end(io, lbio_wait_slot(io));

	if (unlikely(status)) {
		lbio_count_failure(status);
		return false;
	}
	lbio_count(LBIO_EV_RAW);
	return true;
}
