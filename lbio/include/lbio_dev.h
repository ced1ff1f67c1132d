/* SPDX-License-Identifier: GPL-2.0 */
/*
 * LBIO: reads and writes of an NVMe drive without the block layer, over queue
 * pairs that the driver makes beside blk-mq's (block/lbio).
 */
#ifndef _LINUX_LBIO_DEV_H
#define _LINUX_LBIO_DEV_H

#include <linux/aios.h>
#include <linux/atomic.h>
#include <linux/blk_types.h>
#include <linux/cpumask.h>
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/irqreturn.h>
#include <linux/jump_label.h>
#include <linux/lbio.h>
#include <linux/types.h>

struct bio;
struct block_device;
struct block_device_operations;
struct device;
struct folio_batch;
struct gendisk;
struct lbio_dev;
struct lbio_queue;
struct page;
struct task_struct;
struct vm_fault;

/* Entries of a queue; the submission queue is then one page. */
#define LBIO_QUEUE_DEPTH	64

/**
 * struct lbio_dev_ops - what LBIO asks of the driver
 * @sq_doorbell: write the submission queue's tail doorbell of the driver's queue
 * @hw. Called with preemption disabled, between lbio_dev_start() and
 * lbio_dev_stop() only.
 * @cq_doorbell: as @sq_doorbell, for the completion queue's head; also called
 * from the interrupt handler until it is freed
 * @timeout: a command was not answered within the driver's time. Reset the
 * controller; may be called again while that lasts. Process context.
 */
struct lbio_dev_ops {
	void (*sq_doorbell)(void *hw, u16 tail);
	void (*cq_doorbell)(void *hw, u16 head);
	void (*timeout)(struct lbio_dev *dev, void *priv);
};

/* Describes a namespace; one that nothing of this fits has no @dev. */
static inline void lbio_ns_set(struct lbio_ns *ns, u32 nsid, u8 lba_shift)
{
	ns->nsid = nsid;
	ns->lba_shift = lba_shift;
	ns->sector_shift = lba_shift - SECTOR_SHIFT;
	ns->page_more = (PAGE_SIZE >> lba_shift) - 1;
	/* Numbers of namespaces begin with one. */
	ns->kind = (u64)ns->page_more << 32 | nsid;
}

/**
 * struct lbio_extent - where pages of a file are
 * @sector: first sector of the first page on the file system's block device
 * @pages: how many pages are there, one behind the other
 * @quiet: nobody has the file open for writing and nothing of it waits for
 * writeback, so the block device has its content
 * @opens: counts what may end @quiet: the file being opened for writing and its
 * size being changed
 * @seen: value of @opens before anything else was looked at
 */
struct lbio_extent {
	sector_t sector;
	pgoff_t pages;
	bool quiet;
	const atomic_t *opens;
	int seen;
};

/**
 * struct lbio_driver - a driver whose drives may be read around the block layer
 * @fops: operations of its block devices
 * @ns_offset: where, in what private_data of a disk with these operations points
 * to, its struct lbio_ns is
 */
struct lbio_driver {
	const struct block_device_operations *fops;
	size_t ns_offset;
};

/**
 * struct lbio_fs - a file system whose files may be read around the block layer
 * @fops: operations of its regular files
 * @map: where a page of such a file, and those that follow it, are on the block
 * device, if they are plain copies of the pages: 0; -EAGAIN if all of @extent is
 * known but that, and @ask has to be called; another error for no
 * @ask: says that, if it is known without waiting
 *
 * Both are called with invalidate_lock held shared.
 */
struct lbio_fs {
	const struct file_operations *fops;
	int (*map)(struct inode *inode, pgoff_t index,
		   struct lbio_extent *extent);
	bool (*ask)(struct inode *inode, pgoff_t index,
		    struct lbio_extent *extent);
};

/**
 * enum lbio_result - what became of a read of pages that were not cached
 * @LBIO_NOT_READ: nothing, the ordinary path has to read
 * @LBIO_READ: done
 * @LBIO_READ_ACCESSED: done, and the file's access time needs no update
 */
enum lbio_result {
	LBIO_NOT_READ,
	LBIO_READ,
	LBIO_READ_ACCESSED
};

/**
 * struct lbio_batch - writes that one task submits, and then waits for
 * @bdev: where they go, NULL as long as there are none
 * @queue: all of them were submitted there
 * @task: who waits
 * @pending: %LBIO_BATCH_WRITE for each that has not ended, and
 * %LBIO_BATCH_ASLEEP if @task wants to be woken by the last one
 * @pages: how many were submitted since @task waited last
 * @fua: the last one was with FUA
 * @polled: @queue has no interrupts: @task ends its writes, or the watchdog, late
 * @unattended: @task may wait for something else before he waits for them
 * @partial: some of what was to be written was refused
 */
struct lbio_batch {
	struct block_device *bdev;
	struct lbio_queue *queue;
	struct task_struct *task;
	atomic_t pending;
	unsigned int pages;
	bool fua;
	bool polled;
	bool unattended;
	bool partial;
};

#define LBIO_BATCH_ASLEEP	1
#define LBIO_BATCH_WRITE	2

/* Begins a batch of the caller's. */
static inline void lbio_batch_init(struct lbio_batch *batch)
{
	batch->bdev = NULL;
	batch->queue = NULL;
	batch->task = current;
	atomic_set(&batch->pending, 0);
	batch->pages = 0;
	batch->fua = false;
	batch->polled = false;
	batch->unattended = false;
	batch->partial = false;
}

#ifdef CONFIG_AIOS

DECLARE_STATIC_KEY_FALSE(lbio_writes_key);

/* Whether writes may go around the block layer: /sys/kernel/aios/lbio_writes. */
static inline bool lbio_writes_enabled(void)
{
	return static_branch_unlikely(&lbio_writes_key);
}

bool lbio_write(struct lbio_batch *batch, struct bio *bio);
void __lbio_batch_wait(struct lbio_batch *batch);

void lbio_set_driver(const struct lbio_driver *driver);
void lbio_set_fs(const struct lbio_fs *fs);
const char *lbio_dma_refusal(struct device *dma_dev);
struct lbio_dev *lbio_dev_alloc(struct device *dma_dev, const char *name,
				const struct lbio_dev_ops *ops, void *priv,
				unsigned int nr_queues);
void lbio_dev_free(struct lbio_dev *dev);
int lbio_queue_init(struct lbio_dev *dev, unsigned int index, void *sqes,
		    void *cqes, u16 depth, void *hw);
struct lbio_queue *lbio_dev_queue(struct lbio_dev *dev, unsigned int index);
void lbio_queue_reset(struct lbio_queue *queue, u16 qid, bool polled);
void lbio_dev_unmap_cpus(struct lbio_dev *dev);
void lbio_dev_map_cpus(struct lbio_queue *queue, const struct cpumask *mask);
void lbio_dev_start(struct lbio_dev *dev, unsigned int nr_queues,
		    unsigned int timeout);
void lbio_dev_stop(struct lbio_dev *dev);
void lbio_dev_cancel(struct lbio_dev *dev);
irqreturn_t lbio_irq(int irq, void *data);

enum lbio_result lbio_read_miss(struct kiocb *iocb,
				struct address_space *mapping, pgoff_t index,
				pgoff_t nr, struct folio_batch *fbatch);
struct folio *lbio_read_fault(struct vm_fault *vmf, struct file **fpin);
int __lbio_read_bdev(struct block_device *bdev, sector_t sector,
		     unsigned int nr, struct page **pages);

#else /* !CONFIG_AIOS */

static inline bool lbio_writes_enabled(void)
{
	return false;
}

static inline bool lbio_write(struct lbio_batch *batch, struct bio *bio)
{
	return false;
}

static inline void __lbio_batch_wait(struct lbio_batch *batch)
{
}

static inline enum lbio_result lbio_read_miss(struct kiocb *iocb,
					      struct address_space *mapping,
					      pgoff_t index, pgoff_t nr,
					      struct folio_batch *fbatch)
{
	return LBIO_NOT_READ;
}

static inline struct folio *lbio_read_fault(struct vm_fault *vmf,
					    struct file **fpin)
{
	return ERR_PTR(-EAGAIN);
}

static inline int __lbio_read_bdev(struct block_device *bdev, sector_t sector,
				   unsigned int nr, struct page **pages)
{
	return -EAGAIN;
}

#endif /* !CONFIG_AIOS */

/**
 * lbio_batch_wait - wait until all writes of a batch have ended
 * @batch: the batch
 *
 * Before @batch goes away, in every case. Spins, then sleeps, uninterruptibly. A
 * write that failed is then on its way by the ordinary path, and its bio ends when
 * that one does.
 */
static inline void lbio_batch_wait(struct lbio_batch *batch)
{
	if (batch->pages)
		__lbio_batch_wait(batch);
}

/**
 * lbio_batch_unattended - say that the task may wait for something else
 * @batch: his batch
 *
 * Before he waits for anything that may in turn wait for the batch's writes, such
 * as a commit. Waits for those that nobody else would end soon, and lets no more
 * of them be sent.
 */
static inline void lbio_batch_unattended(struct lbio_batch *batch)
{
	batch->unattended = true;
	if (batch->polled)
		lbio_batch_wait(batch);
}

/**
 * lbio_batch_attended - say that the task waits for nothing else any more
 * @batch: his batch
 *
 * Ends what lbio_batch_unattended() began, if what he may have waited for is over.
 */
static inline void lbio_batch_attended(struct lbio_batch *batch)
{
	batch->unattended = false;
}

/**
 * lbio_batch_is_whole - whether writes were sent, and none was refused
 * @batch: his batch
 */
static inline bool lbio_batch_is_whole(const struct lbio_batch *batch)
{
	return batch->bdev && !batch->partial;
}

/**
 * lbio_batch_needs_task - whether writes are in flight that only the task ends soon
 * @batch: his batch
 */
static inline bool lbio_batch_needs_task(struct lbio_batch *batch)
{
	return batch->polled && atomic_read(&batch->pending);
}

/**
 * lbio_read_bdev - read a block device without the block layer
 * @bdev: the device, a whole disk or a partition, which the caller has open
 * @sector: where to read, in sectors of 512 bytes from the beginning of @bdev; a
 * multiple of its logical block size
 * @nr: how many pages to read, 1 to %LBIO_MAX_PAGES
 * @pages: gets the pages, each with a reference for the caller
 *
 * For drivers who read on behalf of somebody who waits. What is read is what
 * the drive has, as with O_DIRECT. The pages are in no page cache, and nobody
 * else's: the caller may look at them, and puts each with put_page() soon, as
 * they are of memory that is meant to be movable.
 *
 * May sleep, not killable. Waits for nothing but the drive's answer, and for
 * memory without I/O, so it may be called while a request of another disk is
 * submitted (BLK_MQ_F_BLOCKING). The caller must not hold a lock that a reset
 * of the drive needs, nor have its request queue frozen.
 *
 * Return: how many pages were read, from the first on: less than @nr if the
 * drive takes no more at once, or memory is fragmented. -EAGAIN if the ordinary
 * path has to read, for whatever reason: the stack is not enabled, the drive is
 * not LBIO's, the place is beyond its end, the read failed, ... Nothing else.
 */
static inline int lbio_read_bdev(struct block_device *bdev, sector_t sector,
				 unsigned int nr, struct page **pages)
{
	if (!aios_enabled())
		return -EAGAIN;
	return __lbio_read_bdev(bdev, sector, nr, pages);
}

#endif /* _LINUX_LBIO_DEV_H */
