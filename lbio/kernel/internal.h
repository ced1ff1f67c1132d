/* SPDX-License-Identifier: GPL-2.0 */
#ifndef BLOCK_LBIO_INTERNAL_H
#define BLOCK_LBIO_INTERNAL_H

#include <linux/aios.h>
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/cpufeature.h>
#include <linux/lbio.h>
#include <linux/lbio_dev.h>
#include <linux/list.h>
#include <linux/log2.h>
#include <linux/percpu.h>
#include <linux/scatterlist.h>
#include <linux/sched/clock.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/workqueue.h>

struct dentry;
struct shrinker;
struct vm_fault;

extern unsigned long aios_poll_max_ns;
extern bool aios_poll_halt;

/*
 * In a virtual machine a loop with PAUSE in it leaves the guest after a while
 * (pause-loop exiting; an emulator does at once), as the host takes it for a
 * lock whose holder does not run. That takes about as long as a read, and the
 * CPU may be gone afterwards.
 */
static __always_inline void aios_spin_relax(void)
{
#ifdef CONFIG_X86
	if (cpu_feature_enabled(X86_FEATURE_HYPERVISOR)) {
		barrier();
		return;
	}
#endif
	cpu_relax();
}

void aios_poll_debugfs(struct dentry *root);
void lbio_debugfs(struct dentry *root);
void lbio_dev_debugfs(struct dentry *root);
void lbio_io_debugfs(struct dentry *root);
void lbio_raw_test_debugfs(struct dentry *root);
void lbio_write_debugfs(struct dentry *root);

/* How many hits in a row nothing is learned from after one that was. */
#define AIOS_POLL_SKIP	3

/**
 * struct aios_poll_slot - what is known of waits of one kind
 * @state: the estimator's
 * @waited: what the last wait took, in ns, 0 for nothing to learn. It is learned
 * from when the next one begins: while the device works, and not while the data
 * is there.
 * @budget: how long to spin by @state and @max_ns, in ns
 * @max_ns: the bound at that time
 * @skip: how many hits to come are not learned from
 *
 * Shared without a lock: readers on other CPUs may fight over a slot. That costs
 * a spin of the wrong length; all members are loaded and stored at once.
 */
struct aios_poll_slot {
	u64 state;
	u64 waited;
	u64 budget;
	unsigned long max_ns;
	unsigned int skip;
};

/* How waits ended: while spinning, after it, without it. */
struct aios_poll_events {
	u64 hits;
	u64 misses;
	u64 sleeps;
};

DECLARE_PER_CPU(struct aios_poll_events, aios_poll_events);

void aios_poll_learn(struct aios_poll_slot *slot, unsigned long max_ns);
void aios_poll_note(struct aios_poll *poll, bool hit);

/*
 * Begins a wait. Returns for how many nanoseconds to spin. aios_poll_hit() ends
 * it; if there is nothing to spin, or that was in vain, aios_poll_sleep() and
 * aios_poll_slept() do.
 */
static inline u64 aios_poll_begin(struct aios_poll *poll,
				  struct aios_poll_slot *slot)
{
	unsigned long max_ns = READ_ONCE(aios_poll_max_ns);

	poll->slot = NULL;
	poll->start = 0;
	if (unlikely(!max_ns))
		return 0;
	poll->slot = slot;
	if (unlikely(READ_ONCE(slot->waited) ||
		     READ_ONCE(slot->max_ns) != max_ns))
		aios_poll_learn(slot, max_ns);
	/* Another reader may have put it there for another bound. */
	poll->budget = min(READ_ONCE(slot->budget), max_ns);
	return poll->budget;
}

/* Whether to spin no more. The first look at the clock begins the wait. */
static inline bool aios_poll_is_over(struct aios_poll *poll)
{
	poll->now = local_clock();
	if (!poll->start)
		poll->start = poll->now;
	/* A clock that went backwards ends it, too. */
	return poll->now - poll->start >= poll->budget;
}

/* The wait goes on asleep, aios_poll_slept() ends it. */
static inline void aios_poll_sleep(struct aios_poll *poll)
{
	if (poll->slot && !poll->start)
		poll->start = local_clock();
}

/*
 * Ends a wait while spinning, having waited up to the last look at the clock. If
 * there was none, the read was complete before anybody waited, which teaches
 * nothing.
 */
static inline void aios_poll_hit(struct aios_poll *poll)
{
	struct aios_poll_slot *slot = poll->slot;
	unsigned int skip = READ_ONCE(slot->skip);

	this_cpu_inc(aios_poll_events.hits);
	if (likely(skip))
		WRITE_ONCE(slot->skip, skip - 1);
	else if (poll->start)
		aios_poll_note(poll, true);
}

/**
 * enum lbio_event - what became of reads and writes that LBIO was asked for
 * @LBIO_EV_READ: served, of files
 * @LBIO_EV_RAW: served, of block devices, for other drivers
 * @LBIO_EV_WRITE: written
 * @LBIO_EV_REWRITE: sent, not written, and left to the ordinary path
 * @LBIO_EV_EARLY: inserted into the page cache before submission
 * @LBIO_EV_HALTED: times that a CPU was halted to wait
 * @LBIO_EV_SLEPT: slept for
 * @LBIO_EV_KILLED: its reader was killed while he slept
 * @LBIO_EV_NO_DEV: not on a drive of LBIO's
 * @LBIO_EV_SHARED: a scheduler, I/O control or tracing is active
 * @LBIO_EV_UNFIT: a write that is not of up to eight whole pages, or has to be
 * treated in a way that LBIO does not know
 * @LBIO_EV_SEQUENTIAL: part of a sequential stream
 * @LBIO_EV_INVALIDATING: truncation or the like is under way
 * @LBIO_EV_UNMAPPED: where the page is, is not known at once
 * @LBIO_EV_DIRTY: the block device's page cache has what is to be written first
 * @LBIO_EV_FROZEN: the request queue is frozen
 * @LBIO_EV_STOPPED: no live queue for this CPU
 * @LBIO_EV_FULL: no free slot
 * @LBIO_EV_NO_PAGE: no mapped page, or a page cannot be mapped
 * @LBIO_EV_PRESENT: somebody else inserted the page first
 * @LBIO_EV_NO_MEMORY: the page cache cannot take the page
 * @LBIO_EV_CHANGED: the file was opened for writing meanwhile
 * @LBIO_EV_ERROR: the drive answered with an error
 * @LBIO_EV_CANCELLED: the controller was disabled
 * @LBIO_EV_STRAY: completions of no command
 * @LBIO_EV_LATE: ticks that found what no interrupt had told
 * @LBIO_EV_TIMEOUT: ticks that found a command lost
 * @LBIO_EV_CHUNK: chunks mapped
 * @LBIO_EV_SMALL_CHUNK: of those, smaller for want of memory
 * @LBIO_EV_SCATTERED: of those, of single pages
 * @LBIO_NR_EVENTS: number of events
 */
enum lbio_event {
	LBIO_EV_READ,
	LBIO_EV_RAW,
	LBIO_EV_WRITE,
	LBIO_EV_REWRITE,
	LBIO_EV_EARLY,
	LBIO_EV_HALTED,
	LBIO_EV_SLEPT,
	LBIO_EV_KILLED,
	LBIO_EV_NO_DEV,
	LBIO_EV_SHARED,
	LBIO_EV_UNFIT,
	LBIO_EV_SEQUENTIAL,
	LBIO_EV_INVALIDATING,
	LBIO_EV_UNMAPPED,
	LBIO_EV_DIRTY,
	LBIO_EV_FROZEN,
	LBIO_EV_STOPPED,
	LBIO_EV_FULL,
	LBIO_EV_NO_PAGE,
	LBIO_EV_PRESENT,
	LBIO_EV_NO_MEMORY,
	LBIO_EV_CHANGED,
	LBIO_EV_ERROR,
	LBIO_EV_CANCELLED,
	LBIO_EV_STRAY,
	LBIO_EV_LATE,
	LBIO_EV_TIMEOUT,
	LBIO_EV_CHUNK,
	LBIO_EV_SMALL_CHUNK,
	LBIO_EV_SCATTERED,
	LBIO_NR_EVENTS
};

DECLARE_PER_CPU(u64[LBIO_NR_EVENTS], lbio_events);
extern const char *const lbio_event_names[LBIO_NR_EVENTS];

static inline void lbio_count(enum lbio_event event)
{
	this_cpu_inc(lbio_events[event]);
}

/* How often the watchdog looks while anything is in flight or mapped. */
#define LBIO_TICK		(HZ / 4)

/* As many pages as the IOMMU's cache of I/O addresses serves. */
#define LBIO_CHUNK_PAGES	32
#define LBIO_CHUNK_ORDER	ilog2(LBIO_CHUNK_PAGES)

/* Classes of sizes of commands: 1, 2 or 3, 4 to 7, 8 pages. */
#define LBIO_NR_SIZES		(ilog2(LBIO_MAX_PAGES) + 1)

/**
 * struct lbio_chunk - pages that are mapped for DMA together
 * @list: in lbio_queue.full
 * @state: which pages are taken and in flight
 * @nr: number of pages
 * @dma: bus address of the first page; the others follow it
 * @born: when it was mapped, in jiffies
 * @sg: the pages as they were mapped if they are not adjacent, or NULL
 * @pages: the pages; the chunk holds a reference to each
 */
struct lbio_chunk {
	struct list_head list;
	struct lbio_chunk_state state;
	unsigned int nr;
	dma_addr_t dma;
	unsigned long born;
	struct scatterlist *sg;
	struct page *pages[LBIO_CHUNK_PAGES];
};

/**
 * struct lbio_io - a read of pages that are adjacent on the drive
 * @bdev: what is read
 * @vmf: the fault that reads, or NULL; for nobody but the reader
 * @fpin: of a fault: the file, if the fault's lock was dropped
 * @queue: where it was submitted; the reader may run elsewhere by now
 * @chunk: where the pages are from
 * @dma: bus address of the first page; the others follow it
 * @start: when accounting began, in jiffies
 * @slot: of the command
 * @nr: number of pages
 * @inserted: those that are in the page cache, locked, as bits; none if it is not
 * for the page cache
 * @valid: they may be seen when they are read
 * @low: the pool needs pages
 * @thrashing: it reads what was in use when it was evicted
 * @pages: the pages; the read has a reference to each
 */
struct lbio_io {
	struct block_device *bdev;
	struct vm_fault *vmf;
	struct file *fpin;
	struct lbio_queue *queue;
	struct lbio_chunk *chunk;
	dma_addr_t dma;
	unsigned long start;
	u16 slot;
	u8 nr;
	u8 inserted;
	bool valid;
	bool low;
	bool thrashing;
	struct page *pages[LBIO_MAX_PAGES];
};

/*
 * Page @i of a read as a folio: pages of the pool are single, none is the tail
 * of another, which page_folio() would have to find out.
 */
static inline struct folio *lbio_folio(const struct lbio_io *io, unsigned int i)
{
	return (struct folio *)io->pages[i];
}

/**
 * struct lbio_write - a write in flight, at the index of its slot
 * @next: of those that are complete and about to be ended
 * @queue: where it was submitted
 * @batch: the batch of its submitter, who waits
 * @bio: what is written
 * @start: when accounting began, in jiffies
 * @dma: bus address of its pages if @nents is one
 * @slot: its own
 * @nents: how many ranges of memory were mapped
 * @sg: those, if they are several
 *
 * Aligned, as its address is a token for lbio_wake().
 */
struct lbio_write {
	struct lbio_write *next;
	struct lbio_queue *queue;
	struct lbio_batch *batch;
	struct bio *bio;
	unsigned long start;
	dma_addr_t dma;
	u16 slot;
	u8 nents;
	struct scatterlist sg[LBIO_MAX_PAGES];
} __aligned(16);

/**
 * struct lbio_queue - a queue pair, its pool of pages, and its watchdog
 * @dev: its controller
 * @hw: the driver's part
 * @sq_doorbell: that of the driver's functions
 * @ring: the rings and slots; the submission half is used under @sq_lock, the
 * completion half under @cq_lock, slots by their owners
 * @lists: PRP lists of the slots, one page that the device reads
 * @lists_dma: bus address of @lists
 * @polled: it has no interrupt
 * @irq_cpu: the CPU that took its last interrupt, -1 before the first
 * @live: the controller knows it. Written under both locks, read under either.
 * @ticking: @tick is scheduled, or running and will schedule itself
 * @used: a page was taken, or a chunk came, since @tick ran last
 * @refilling: somebody fetches pages
 * @chunk: pages to take, or NULL, as while it is not @live
 * @next: pages to take after those, or NULL
 * @full: chunks that have no pages to take, and are not unmapped yet
 * @poll: what is known of waits for reads of 1, 2 or 3, 4 to 7, 8 pages
 * @write_poll: the same for writes, without and with FUA
 * @started: when each slot's command was submitted, in jiffies
 * @tick: finds lost interrupts, lost commands and old chunks
 * @orphaned: slots whose readers were killed, as bits
 * @orphans: their reads
 * @orphan_work: ends those that are complete
 * @writes: the write of each slot that has one
 * @written: writes that are complete; only while @cq_lock is held
 * @rewrites: bios whose writes failed, for the ordinary path
 * @rewrite_work: submits them
 * @sq_lock: protects submission, and all above that changes; taken in process
 * context only
 * @cq_lock: protects completion; taken with interrupts disabled, inside @sq_lock
 */
struct lbio_queue {
	struct lbio_dev *dev;
	void *hw;
	void (*sq_doorbell)(void *hw, u16 tail);
	struct lbio_ring *ring;
	void *lists;
	dma_addr_t lists_dma;
	bool polled;
	bool live;
	bool ticking;
	bool used;
	bool refilling;
	struct lbio_chunk *chunk;
	struct lbio_chunk *next;
	struct list_head full;
	struct aios_poll_slot poll[LBIO_NR_SIZES];
	struct aios_poll_slot write_poll[2][LBIO_NR_SIZES];
	unsigned long started[LBIO_SLOTS];
	struct delayed_work tick;
	unsigned long orphaned;
	struct lbio_io *orphans;
	struct work_struct orphan_work;
	struct lbio_write *writes;
	struct work_struct rewrite_work;
	spinlock_t sq_lock; /* submission and pool */
	/* completion */
	spinlock_t cq_lock ____cacheline_aligned_in_smp;
	int irq_cpu;
	struct lbio_write *written;
	struct bio_list rewrites;
};

/**
 * struct lbio_dev - a controller
 * @dma_dev: the device that does DMA
 * @name: for messages
 * @ops: the driver's functions
 * @priv: the driver's argument to them
 * @timeout: time for a command, in jiffies
 * @lazy: the IOMMU, if it translates, may be told late that a mapping is gone
 * @scatter: it puts single pages side by side
 * @workqueue: submits what the ordinary path has to write again
 * @shrinker: gives pages back when memory is short, or NULL
 * @list: in the list of all devices
 * @map: each CPU's queue, or NULL
 * @nr_queues: length of @queues
 * @queues: all of them, live or not
 */
struct lbio_dev {
	struct device *dma_dev;
	const char *name;
	const struct lbio_dev_ops *ops;
	void *priv;
	unsigned int timeout;
	bool lazy;
	bool scatter;
	struct workqueue_struct *workqueue;
	struct shrinker *shrinker;
	struct list_head list;
	struct lbio_queue *__percpu *map;
	unsigned int nr_queues;
	struct lbio_queue queues[] __counted_by(nr_queues);
};

/* Shortest and longest sleep of who waits for a queue without interrupts, in us. */
#define LBIO_NAP_MIN	20
#define LBIO_NAP_MAX	1000

void lbio_reap(struct lbio_queue *queue);
void lbio_start_tick(struct lbio_queue *queue);

/* lbio_wake() has a token of a queue's, not of a task's: wake its worker. */
#define LBIO_TOKEN_QUEUE	4
/* It has one of a write's: end it. */
#define LBIO_TOKEN_WRITE	8

int lbio_wait(struct lbio_io *io);
bool lbio_wait_raw(struct lbio_io *io);
void lbio_put_pages(struct lbio_io *io, unsigned int nr);
void lbio_orphan_work(struct work_struct *work);
void lbio_end_writes(struct lbio_write *write);
void lbio_rewrite_work(struct work_struct *work);

extern struct lbio_driver lbio_driver;
extern struct lbio_fs lbio_fs;

/* The controller of the namespace behind @bdev, *@ns, or NULL. */
static inline struct lbio_dev *lbio_find_ns(struct block_device *bdev,
					    const struct lbio_ns **ns)
{
	struct gendisk *disk = bdev->bd_disk;

	/* Pairs with lbio_set_driver(): the offset is set with the fops. */
	if (disk->fops != smp_load_acquire(&lbio_driver.fops))
		return NULL;
	*ns = disk->private_data + lbio_driver.ns_offset;
	return READ_ONCE((*ns)->dev);
}

/* The read is over for whoever waits to freeze the drive's request queue. */
static inline void lbio_exit_queue(struct block_device *bdev)
{
	percpu_ref_put(&bdev_get_queue(bdev)->q_usage_counter);
}

/* Whether lbio_map() may be called for the inode of @file. */
static inline bool lbio_may_map(const struct file *file)
{
	/* Pairs with lbio_set_fs(): the callbacks are set with the fops. */
	return file->f_op == smp_load_acquire(&lbio_fs.fops);
}

static inline bool lbio_map(struct inode *inode, pgoff_t index,
			    struct lbio_extent *extent)
{
	int error = lbio_fs.map(inode, index, extent);

	return likely(!error) ||
	       (error == -EAGAIN && lbio_fs.ask(inode, index, extent));
}

void lbio_dma_init(struct lbio_dev *dev);
void lbio_pool_refill(struct lbio_queue *queue);
void lbio_pool_advance(struct lbio_queue *queue);
void lbio_pool_retire(struct lbio_queue *queue);
void lbio_pool_unmap(struct lbio_queue *queue, struct lbio_chunk *chunk);
void lbio_pool_unmap_idle(struct lbio_queue *queue);
void lbio_pool_tick(struct lbio_queue *queue);
void lbio_pool_drain(struct lbio_queue *queue);
void lbio_pool_add_shrinker(struct lbio_dev *dev);
unsigned int lbio_pool_pages(struct lbio_queue *queue);

#endif /* BLOCK_LBIO_INTERNAL_H */
