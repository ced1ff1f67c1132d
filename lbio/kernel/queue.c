// SPDX-License-Identifier: GPL-2.0
/*
 * LBIO's queue pairs: what the driver calls, completion, and the watchdog.
 *
 * Lifetime. A queue, once made, lives as long as the controller. Between
 * lbio_dev_start() and lbio_dev_stop() it is live: commands are submitted and
 * doorbells written under a lock of the queue, and only while it is live, so
 * none is written after lbio_dev_stop() has returned. Who has a command in
 * flight holds a reference to the usage counter of the namespace's request
 * queue until he has taken its result. Freezing the namespaces, as the driver
 * does for reset, suspend and removal, therefore waits for LBIO as it waits for
 * blk-mq; lbio_dev_cancel() ends what the controller will not answer any more.
 *
 * Interrupts. A queue's interrupt may be shut down with the last CPU it is
 * bound to, or get lost. Nobody depends on it for more than a tick: the
 * watchdog looks at the queue while anything is in flight.
 */

#include <linux/bitops.h>
#include <linux/blkdev.h>
#include <linux/debugfs.h>
#include <linux/device.h>
#include <linux/dma-mapping.h>
#include <linux/export.h>
#include <linux/mutex.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/shrinker.h>
#include <linux/slab.h>

#include "internal.h"

/* A command this old has no interrupt to wait for. */
#define LBIO_LATE_AGE	(HZ / 8)

/* All devices, for debugfs. */
static LIST_HEAD(lbio_devs);
static DEFINE_MUTEX(lbio_devs_lock);

/*
 * Wakes the owner of a slot. He may be on his way already, even exit: tasks are
 * freed after a grace period, and interrupts are disabled here. If he was killed
 * the slot is the queue's, whose work must not wait for memory: its pages are
 * locked, and a reset of the drive that memory is written to waits for it. A write
 * has no owner: it is ended when the lock that protects completion is released.
 */
void lbio_wake(u64 token)
{
	struct lbio_queue *queue;
	struct lbio_write *write;

	if (token & LBIO_TOKEN_QUEUE) {
		queue = (void *)(unsigned long)(token & ~LBIO_TOKEN_QUEUE);
		kblockd_schedule_work(&queue->orphan_work);
		return;
	}
	if (token & LBIO_TOKEN_WRITE) {
		write = (void *)(unsigned long)(token & ~LBIO_TOKEN_WRITE);
		write->next = write->queue->written;
		write->queue->written = write;
		return;
	}
	wake_up_process((struct task_struct *)(unsigned long)token);
}

void lbio_stray(struct lbio_queue *queue, u16 sq_id, u16 cid, u16 status)
{
	lbio_count(LBIO_EV_STRAY);
	pr_warn_ratelimited("lbio: %s: completion of no command: queue %u, id %u, status %#x\n",
			    queue->dev->name, sq_id, cid, status);
}

/* Completes what is complete, and tells the controller. */
static bool __lbio_reap(struct lbio_queue *queue)
	__must_hold(&queue->cq_lock)
{
	int head = lbio_ring_reap(queue->ring, queue);

	if (head < 0)
		return false;
	queue->dev->ops->cq_doorbell(queue->hw, head);
	return true;
}

/* Takes the writes that are complete, for lbio_end_writes(). */
static struct lbio_write *lbio_take_written(struct lbio_queue *queue)
	__must_hold(&queue->cq_lock)
{
	struct lbio_write *written = queue->written;

	if (unlikely(written))
		queue->written = NULL;
	return written;
}

/*
 * Completes what is complete, unless somebody else is just doing so, or the
 * controller is being disabled: what it left then is for lbio_dev_cancel().
 */
void lbio_reap(struct lbio_queue *queue)
{
	struct lbio_write *written;
	unsigned long flags;

	if (!spin_trylock_irqsave(&queue->cq_lock, flags))
		return;
	if (queue->live)
		__lbio_reap(queue);
	written = lbio_take_written(queue);
	spin_unlock_irqrestore(&queue->cq_lock, flags);
	if (unlikely(written))
		lbio_end_writes(written);
}

/**
 * lbio_irq - interrupt handler of a queue
 * @irq: number of the interrupt
 * @data: the queue, from lbio_queue_init()
 *
 * May run until the driver frees the interrupt, also after lbio_dev_stop(): the
 * driver frees it before it takes the doorbells away.
 *
 * Return: whether there was anything to do. That another one reaped first is no
 * spurious interrupt: it was sent for a completion of this queue's.
 */
irqreturn_t lbio_irq(int irq, void *data)
{
	struct lbio_queue *queue = data;
	struct lbio_write *written;

	/* Interrupts are disabled, in a thread of the handler's, too. */
	spin_lock(&queue->cq_lock);
	__lbio_reap(queue);
	written = lbio_take_written(queue);
	if (unlikely(queue->irq_cpu != smp_processor_id()))
		WRITE_ONCE(queue->irq_cpu, smp_processor_id());
	spin_unlock(&queue->cq_lock);
	if (unlikely(written))
		lbio_end_writes(written);
	return IRQ_HANDLED;
}
EXPORT_SYMBOL_GPL(lbio_irq);

/* The slots whose commands have been in flight for @age jiffies, as bits. */
static u64 lbio_older(struct lbio_queue *queue, unsigned long age)
{
	unsigned long slots;
	u64 older = 0;
	int slot;

	/* The lock lets no slot be in flight without its time. */
	spin_lock(&queue->sq_lock);
	slots = lbio_ring_flying(queue->ring);
	for_each_set_bit(slot, &slots, LBIO_SLOTS)
		if (time_after_eq(jiffies, queue->started[slot] + age))
			older |= BIT_ULL(slot);
	spin_unlock(&queue->sq_lock);
	return older;
}

/* Looks for lost interrupts, then for lost commands. */
static void lbio_tick_commands(struct lbio_queue *queue)
{
	struct lbio_dev *dev = queue->dev;
	u64 late, lost;

	late = lbio_older(queue, LBIO_LATE_AGE);
	if (!late)
		return;
	lbio_reap(queue);
	if (!queue->polled && late & ~lbio_ring_flying(queue->ring))
		lbio_count(LBIO_EV_LATE);

	lost = lbio_older(queue, READ_ONCE(dev->timeout));
	if (!lost)
		return;
	lbio_count(LBIO_EV_TIMEOUT);
	pr_warn_ratelimited("lbio: %s: commands %#llx not answered in %u ms, resetting the controller\n",
			    dev->name, lost, jiffies_to_msecs(dev->timeout));
	dev->ops->timeout(dev, dev->priv);
}

/* On a workqueue that makes progress when memory is short: see lbio_wake(). */
static void lbio_schedule_tick(struct lbio_queue *queue)
{
	kblockd_mod_delayed_work_on(WORK_CPU_UNBOUND, &queue->tick, LBIO_TICK);
}

/* The watchdog looks after the queue from now on. */
void lbio_start_tick(struct lbio_queue *queue)
	__must_hold(&queue->sq_lock)
{
	queue->ticking = true;
	lbio_schedule_tick(queue);
}

static void lbio_tick(struct work_struct *work)
{
	struct lbio_queue *queue =
		container_of(work, struct lbio_queue, tick.work);

	lbio_tick_commands(queue);
	lbio_pool_tick(queue);

	/*
	 * Submission sets ->ticking and takes a slot under the lock, so one of
	 * the two sees the other.
	 */
	spin_lock(&queue->sq_lock);
	if (!queue->chunk && !queue->next && list_empty(&queue->full) &&
	    !lbio_ring_flying(queue->ring))
		queue->ticking = false;
	else
		lbio_schedule_tick(queue);
	spin_unlock(&queue->sq_lock);
}

/**
 * lbio_dev_alloc - prepare for a controller
 * @dma_dev: the device that does DMA; lbio_dma_refusal() has nothing against it
 * @name: name for messages; outlives the result
 * @ops: the driver's functions
 * @priv: argument to them
 * @nr_queues: most queues there will be
 *
 * Return: the device, without queues, or NULL without memory.
 */
struct lbio_dev *lbio_dev_alloc(struct device *dma_dev, const char *name,
				const struct lbio_dev_ops *ops, void *priv,
				unsigned int nr_queues)
{
	struct lbio_dev *dev;
	unsigned int i;

	dev = kvzalloc_flex(*dev, queues, nr_queues);
	if (!dev)
		return NULL;
	dev->map = alloc_percpu(struct lbio_queue *);
	if (!dev->map)
		goto free_dev;
	/* What is written again may be what memory is waited for. */
	dev->workqueue = alloc_workqueue("lbio-%s", WQ_MEM_RECLAIM | WQ_UNBOUND,
					 0, name);
	if (!dev->workqueue)
		goto free_map;
	dev->dma_dev = dma_dev;
	dev->name = name;
	dev->ops = ops;
	dev->priv = priv;
	dev->nr_queues = nr_queues;
	lbio_dma_init(dev);
	for (i = 0; i < nr_queues; i++) {
		struct lbio_queue *queue = &dev->queues[i];

		queue->dev = dev;
		spin_lock_init(&queue->sq_lock);
		spin_lock_init(&queue->cq_lock);
		INIT_LIST_HEAD(&queue->full);
		INIT_DELAYED_WORK(&queue->tick, lbio_tick);
		INIT_WORK(&queue->orphan_work, lbio_orphan_work);
		INIT_WORK(&queue->rewrite_work, lbio_rewrite_work);
		bio_list_init(&queue->rewrites);
	}
	lbio_pool_add_shrinker(dev);
	mutex_lock(&lbio_devs_lock);
	list_add_tail(&dev->list, &lbio_devs);
	mutex_unlock(&lbio_devs_lock);
	return dev;

free_map:
	free_percpu(dev->map);
free_dev:
	kvfree(dev);
	return NULL;
}
EXPORT_SYMBOL_GPL(lbio_dev_alloc);

/**
 * lbio_dev_free - forget a controller
 * @dev: the device or NULL; stopped, its namespaces gone
 */
void lbio_dev_free(struct lbio_dev *dev)
{
	unsigned int i;

	if (!dev)
		return;
	mutex_lock(&lbio_devs_lock);
	list_del(&dev->list);
	mutex_unlock(&lbio_devs_lock);
	if (dev->shrinker)
		shrinker_free(dev->shrinker);
	for (i = 0; i < dev->nr_queues; i++) {
		struct lbio_queue *queue = &dev->queues[i];

		if (!queue->ring)
			continue;
		/* No read is left; its worker may be on the way out. */
		flush_work(&queue->orphan_work);
		/* Nor is a write; bios that are left go to disks that are dead. */
		flush_work(&queue->rewrite_work);
		cancel_delayed_work_sync(&queue->tick);
		lbio_pool_drain(queue);
		WARN_ON_ONCE(!list_empty(&queue->full));
		lbio_ring_free(queue->ring);
		kfree(queue->writes);
		kfree(queue->orphans);
		dma_free_coherent(dev->dma_dev, PAGE_SIZE, queue->lists,
				  queue->lists_dma);
	}
	destroy_workqueue(dev->workqueue);
	free_percpu(dev->map);
	kvfree(dev);
}
EXPORT_SYMBOL_GPL(lbio_dev_free);

/**
 * lbio_queue_init - give a queue its memory
 * @dev: its device
 * @index: its index, below the device's number of queues
 * @sqes: coherent DMA memory of @depth entries; stays until lbio_dev_free()
 * @cqes: as @sqes
 * @depth: number of entries, 2 to LBIO_QUEUE_DEPTH
 * @hw: the driver's argument to the doorbell functions
 *
 * Return: 0, or -ENOMEM.
 */
int lbio_queue_init(struct lbio_dev *dev, unsigned int index, void *sqes,
		    void *cqes, u16 depth, void *hw)
{
	struct lbio_queue *queue = &dev->queues[index];

	/* A list of 64 bytes for each slot. */
	BUILD_BUG_ON(LBIO_QUEUE_DEPTH * 64 > PAGE_SIZE);
	queue->hw = hw;
	queue->sq_doorbell = dev->ops->sq_doorbell;
	queue->orphans = kcalloc(LBIO_SLOTS, sizeof(*queue->orphans),
				 GFP_KERNEL);
	if (!queue->orphans)
		return -ENOMEM;
	queue->writes = kcalloc(LBIO_SLOTS, sizeof(*queue->writes), GFP_KERNEL);
	if (!queue->writes)
		goto free_orphans;
	queue->lists = dma_alloc_coherent(dev->dma_dev, PAGE_SIZE,
					  &queue->lists_dma, GFP_KERNEL);
	if (!queue->lists)
		goto free_writes;
	queue->ring = lbio_ring_new(sqes, cqes, queue->lists, queue->lists_dma,
				    depth);
	if (!queue->ring)
		goto free_lists;
	return 0;

free_lists:
	dma_free_coherent(dev->dma_dev, PAGE_SIZE, queue->lists,
			  queue->lists_dma);
free_writes:
	kfree(queue->writes);
free_orphans:
	kfree(queue->orphans);
	return -ENOMEM;
}
EXPORT_SYMBOL_GPL(lbio_queue_init);

/**
 * lbio_dev_queue - a queue by its index
 * @dev: its device
 * @index: its index, below the device's number of queues
 *
 * Return: the queue.
 */
struct lbio_queue *lbio_dev_queue(struct lbio_dev *dev, unsigned int index)
{
	return &dev->queues[index];
}
EXPORT_SYMBOL_GPL(lbio_dev_queue);

/**
 * lbio_queue_reset - empty a queue before the controller is told of it
 * @queue: the queue; not live, its interrupt freed
 * @qid: its number with the controller
 * @polled: it will have no interrupt
 */
void lbio_queue_reset(struct lbio_queue *queue, u16 qid, bool polled)
{
	spin_lock(&queue->sq_lock);
	spin_lock_irq(&queue->cq_lock);
	lbio_ring_reset(queue->ring, qid);
	queue->polled = polled;
	queue->irq_cpu = -1;
	spin_unlock_irq(&queue->cq_lock);
	spin_unlock(&queue->sq_lock);
}
EXPORT_SYMBOL_GPL(lbio_queue_reset);

/**
 * lbio_dev_unmap_cpus - let no CPU use any queue
 * @dev: the device, not started
 */
void lbio_dev_unmap_cpus(struct lbio_dev *dev)
{
	unsigned int cpu;

	for_each_possible_cpu(cpu)
		WRITE_ONCE(*per_cpu_ptr(dev->map, cpu), NULL);
}
EXPORT_SYMBOL_GPL(lbio_dev_unmap_cpus);

/**
 * lbio_dev_map_cpus - let CPUs use a queue
 * @queue: the queue
 * @mask: the CPUs, NULL for all; those that have a queue already keep it
 */
void lbio_dev_map_cpus(struct lbio_queue *queue, const struct cpumask *mask)
{
	struct lbio_queue **own;
	unsigned int cpu;

	for_each_cpu(cpu, mask ?: cpu_possible_mask) {
		own = per_cpu_ptr(queue->dev->map, cpu);
		if (!*own)
			WRITE_ONCE(*own, queue);
	}
}
EXPORT_SYMBOL_GPL(lbio_dev_map_cpus);

static void lbio_queue_set_live(struct lbio_queue *queue, bool live)
{
	spin_lock(&queue->sq_lock);
	if (!live)
		lbio_pool_retire(queue);
	spin_lock_irq(&queue->cq_lock);
	queue->live = live;
	spin_unlock_irq(&queue->cq_lock);
	spin_unlock(&queue->sq_lock);
}

/**
 * lbio_dev_start - let reads and writes through
 * @dev: the device
 * @nr_queues: how many of its queues the controller knows, the first ones
 * @timeout: time for a command, in jiffies
 *
 * The doorbells work from here on.
 */
void lbio_dev_start(struct lbio_dev *dev, unsigned int nr_queues,
		    unsigned int timeout)
{
	unsigned int i;

	WRITE_ONCE(dev->timeout, timeout);
	for (i = 0; i < nr_queues; i++)
		lbio_queue_set_live(&dev->queues[i], true);
}
EXPORT_SYMBOL_GPL(lbio_dev_start);

/**
 * lbio_dev_stop - let no more reads and writes through
 * @dev: the device, started or not
 *
 * On return no doorbell is being written, nor will one be but by lbio_irq().
 * Commands stay in flight until they are answered or cancelled.
 */
void lbio_dev_stop(struct lbio_dev *dev)
{
	unsigned int i;

	for (i = 0; i < dev->nr_queues; i++)
		if (dev->queues[i].ring)
			lbio_queue_set_live(&dev->queues[i], false);
}
EXPORT_SYMBOL_GPL(lbio_dev_stop);

/**
 * lbio_dev_cancel - end what is in flight
 * @dev: the device; stopped, its interrupts freed, the controller disabled
 *
 * What the controller did complete is complete, anything else fails, and is
 * read or written again by the ordinary path.
 */
void lbio_dev_cancel(struct lbio_dev *dev)
{
	struct lbio_write *written;
	unsigned int i;

	for (i = 0; i < dev->nr_queues; i++) {
		struct lbio_queue *queue = &dev->queues[i];

		if (!queue->ring)
			continue;
		spin_lock_irq(&queue->cq_lock);
		lbio_ring_reap(queue->ring, queue);
		lbio_ring_cancel(queue->ring);
		written = lbio_take_written(queue);
		spin_unlock_irq(&queue->cq_lock);
		lbio_end_writes(written);
	}
}
EXPORT_SYMBOL_GPL(lbio_dev_cancel);

/* Memory of each queue in bytes: one line per queue. */
static int lbio_memory_show(struct seq_file *m, void *unused)
{
	size_t fixed = sizeof(struct lbio_queue) + lbio_ring_bytes() +
		       LBIO_SLOTS * (sizeof(struct lbio_io) +
				     sizeof(struct lbio_write));
	size_t entries = LBIO_QUEUE_DEPTH * (64 + 16);
	struct lbio_dev *dev;
	unsigned int i;
	size_t pool;

	mutex_lock(&lbio_devs_lock);
	list_for_each_entry(dev, &lbio_devs, list) {
		for (i = 0; i < dev->nr_queues; i++) {
			if (!dev->queues[i].ring)
				continue;
			pool = lbio_pool_pages(&dev->queues[i]) * PAGE_SIZE;
			seq_printf(m, "%s queue %u slots %zu rings %zu lists %lu pool %zu total %zu\n",
				   dev->name, i, fixed, entries, PAGE_SIZE,
				   pool, fixed + entries + PAGE_SIZE + pool);
		}
	}
	mutex_unlock(&lbio_devs_lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(lbio_memory);

void lbio_dev_debugfs(struct dentry *root)
{
	debugfs_create_file("lbio_memory", 0444, root, NULL,
			    &lbio_memory_fops);
}
