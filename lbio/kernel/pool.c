// SPDX-License-Identifier: GPL-2.0
/*
 * LBIO's pages: mapped for DMA ahead of time, unmapped long after.
 *
 * Mapping a page through an IOMMU and unmapping it costs more than all else that
 * a read has to do, and hardly more for many adjacent pages than for one. Each
 * queue therefore has a chunk of adjacent pages that are mapped by one call.
 * Reads take them one by one and put them into the page cache. One call unmaps
 * the chunk when its last page has been taken and no read into it is in flight.
 *
 * Until then the chunk holds a reference to each of its pages. Whatever becomes
 * of a page in the page cache meanwhile, it is not freed and not migrated while
 * the device could still write to it. That is bounded in number, by two chunks
 * per queue and those that the slowest reads in flight hold, and in time, by
 * LBIO_CHUNK_AGE and a tick. When memory is short, a shrinker gives back what no
 * read has.
 *
 * Only for devices that are trusted and coherent, which see all memory without
 * bouncing (lbio_dma_refusal()); and chunks have more than one page only if the
 * IOMMU, if any, is in lazy mode. In strict mode the administrator wants pages
 * out of reach at once: each is a chunk of its own, which its read unmaps before
 * anybody sees the data.
 */

#include <linux/device.h>
#include <linux/dma-map-ops.h>
#include <linux/dma-mapping.h>
#include <linux/export.h>
#include <linux/gfp.h>
#include <linux/iommu.h>
#include <linux/jiffies.h>
#include <linux/mm.h>
#include <linux/pci.h>
#include <linux/sched/mm.h>
#include <linux/shrinker.h>
#include <linux/slab.h>
#include <linux/swiotlb.h>

#include "internal.h"

/* 32 pages: as much as the IOMMU's cache of I/O addresses serves. */
#define LBIO_CHUNK_ORDER	5

/* A chunk is used up or given back within this time, give or take a tick. */
#define LBIO_CHUNK_AGE		HZ

/**
 * lbio_dma_refusal - why a device's pages cannot stay mapped
 * @dma_dev: the device
 *
 * Return: the reason in words, or NULL if they can.
 */
const char *lbio_dma_refusal(struct device *dma_dev)
{
	if (dev_is_pci(dma_dev) && to_pci_dev(dma_dev)->untrusted)
		return "untrusted device";
	if (!dev_is_dma_coherent(dma_dev))
		return "DMA is not coherent";
	if (is_swiotlb_force_bounce(dma_dev))
		return "DMA through bounce buffers";
	/* May bounce, or translate, where nobody here could see it. */
	if (get_dma_ops(dma_dev))
		return "DMA mapped by the platform";
	if (dma_addressing_limited(dma_dev))
		return "device cannot address all memory";
	return NULL;
}
EXPORT_SYMBOL_GPL(lbio_dma_refusal);

/* Whether mappings of @dma_dev may outlive what they were made for. */
bool lbio_dma_lazy(struct device *dma_dev)
{
	struct iommu_domain *domain = iommu_get_domain_for_dev(dma_dev);

	return !domain || domain->type == IOMMU_DOMAIN_IDENTITY ||
	       domain->type == IOMMU_DOMAIN_DMA_FQ;
}

static struct lbio_chunk *lbio_chunk_alloc(struct lbio_queue *queue)
{
	struct device *dma_dev = queue->dev->dma_dev;
	int node = dev_to_node(dma_dev);
	struct lbio_chunk *chunk;
	int order, i;

	chunk = kmalloc_obj(*chunk, GFP_KERNEL | __GFP_NOWARN);
	if (!chunk)
		return NULL;
	if (queue->dev->lazy)
		node = numa_node_id();

	/*
	 * Movable, as pages of the page cache are; the reference is short. More
	 * than one page only if they are there, which costs no one else a thing.
	 */
	chunk->page = NULL;
	for (order = queue->dev->lazy ? LBIO_CHUNK_ORDER : 0; order >= 0;
	     order--) {
		gfp_t gfp = GFP_HIGHUSER_MOVABLE | __GFP_NOWARN;

		if (order)
			gfp = (gfp & ~__GFP_DIRECT_RECLAIM) | __GFP_NOMEMALLOC;
		else
			gfp |= __GFP_NORETRY;
		chunk->page = alloc_pages_node(node, gfp, order);
		if (chunk->page)
			break;
	}
	if (!chunk->page)
		goto free_chunk;

	chunk->nr = 1 << order;
	if (order)
		split_page(chunk->page, order);
	chunk->dma = dma_map_page(dma_dev, chunk->page, 0, PAGE_SIZE << order,
				  DMA_FROM_DEVICE);
	if (dma_mapping_error(dma_dev, chunk->dma))
		goto free_pages;

	lbio_chunk_init(&chunk->state, chunk->nr);
	chunk->born = jiffies;
	lbio_count(LBIO_EV_CHUNK);
	if (queue->dev->lazy && order < LBIO_CHUNK_ORDER)
		lbio_count(LBIO_EV_SMALL_CHUNK);
	return chunk;

free_pages:
	for (i = 0; i < chunk->nr; i++)
		__free_page(chunk->page + i);
free_chunk:
	kfree(chunk);
	return NULL;
}

/* Unmaps a chunk that nothing is in flight into, and drops its references. */
static void lbio_chunk_free(struct lbio_queue *queue, struct lbio_chunk *chunk)
{
	/* What was read has been synced, and may have been written to since. */
	unsigned long attrs = queue->dev->lazy ? DMA_ATTR_SKIP_CPU_SYNC : 0;
	unsigned int i;

	dma_unmap_page_attrs(queue->dev->dma_dev, chunk->dma,
			     (size_t)chunk->nr << PAGE_SHIFT, DMA_FROM_DEVICE,
			     attrs);
	for (i = 0; i < chunk->nr; i++)
		put_page(chunk->page + i);
	kfree(chunk);
}

/* Puts a chunk that pages are taken from aside. */
void lbio_pool_set_aside(struct lbio_queue *queue, struct lbio_chunk **chunk)
	__must_hold(&queue->sq_lock)
{
	if (!*chunk)
		return;
	lbio_chunk_retire(&(*chunk)->state);
	list_add_tail(&(*chunk)->list, &queue->full);
	WRITE_ONCE(*chunk, NULL);
}

/* Takes pages from the next chunk from now on, if there is one. */
void lbio_pool_advance(struct lbio_queue *queue)
	__must_hold(&queue->sq_lock)
{
	if (!queue->next)
		return;
	lbio_pool_set_aside(queue, &queue->chunk);
	WRITE_ONCE(queue->chunk, queue->next);
	WRITE_ONCE(queue->next, NULL);
}

/*
 * Sees to it that the queue has pages. May sleep; called while the device is
 * busy, or nobody waits, by readers whom a reset of the drive waits for: not to
 * wait for the drive's I/O.
 */
void lbio_pool_refill(struct lbio_queue *queue)
{
	unsigned int noio = memalloc_noio_save();
	struct lbio_chunk *chunk = lbio_chunk_alloc(queue);

	memalloc_noio_restore(noio);
	spin_lock(&queue->sq_lock);
	queue->refilling = false;
	/* Others may have refilled meanwhile; more than two are too many. */
	if (chunk && queue->live && !queue->next) {
		WRITE_ONCE(queue->next, chunk);
		/* Not for the next tick to throw away. */
		queue->used = true;
		if (!queue->chunk || !lbio_chunk_left(&queue->chunk->state))
			lbio_pool_advance(queue);
		if (!queue->ticking) {
			queue->ticking = true;
			lbio_schedule_tick(queue);
		}
		chunk = NULL;
	}
	spin_unlock(&queue->sq_lock);
	if (chunk)
		lbio_chunk_free(queue, chunk);
}

/* Unmaps what was put aside and is not in use any more. */
void lbio_pool_unmap_idle(struct lbio_queue *queue)
{
	struct lbio_chunk *chunk, *next;
	LIST_HEAD(idle);

	spin_lock(&queue->sq_lock);
	list_for_each_entry_safe(chunk, next, &queue->full, list)
		if (lbio_chunk_is_idle(&chunk->state))
			list_move_tail(&chunk->list, &idle);
	spin_unlock(&queue->sq_lock);

	list_for_each_entry_safe(chunk, next, &idle, list)
		lbio_chunk_free(queue, chunk);
}

/*
 * Unmaps a chunk in strict mode, whose only page was read into, or was to be. It
 * is taken out of reach of whoever unmaps what is idle first: they might not be
 * done when this returns, and then the device could still write to the page.
 */
void lbio_pool_unmap(struct lbio_queue *queue, struct lbio_chunk *chunk)
{
	spin_lock(&queue->sq_lock);
	if (chunk == queue->chunk)
		WRITE_ONCE(queue->chunk, NULL);
	else
		list_del(&chunk->list);
	spin_unlock(&queue->sq_lock);
	lbio_chunk_free(queue, chunk);
}

/* Gives back a chunk that is old, or that nobody has used since last time. */
void lbio_pool_tick(struct lbio_queue *queue)
{
	unsigned long old = jiffies - LBIO_CHUNK_AGE;

	spin_lock(&queue->sq_lock);
	if (!queue->used || !queue->live) {
		lbio_pool_set_aside(queue, &queue->chunk);
		lbio_pool_set_aside(queue, &queue->next);
	}
	if (queue->chunk && time_after(old, queue->chunk->born))
		lbio_pool_set_aside(queue, &queue->chunk);
	if (queue->next && time_after(old, queue->next->born))
		lbio_pool_set_aside(queue, &queue->next);
	queue->used = false;
	spin_unlock(&queue->sq_lock);
	lbio_pool_unmap_idle(queue);
}

/* Gives back all pages that no read has. */
void lbio_pool_drain(struct lbio_queue *queue)
{
	spin_lock(&queue->sq_lock);
	lbio_pool_set_aside(queue, &queue->chunk);
	lbio_pool_set_aside(queue, &queue->next);
	spin_unlock(&queue->sq_lock);
	lbio_pool_unmap_idle(queue);
}

/* Pages that no read has been given. */
static unsigned int lbio_pool_left(struct lbio_queue *queue)
{
	unsigned int left = 0;

	spin_lock(&queue->sq_lock);
	if (queue->chunk)
		left += lbio_chunk_left(&queue->chunk->state);
	if (queue->next)
		left += lbio_chunk_left(&queue->next->state);
	spin_unlock(&queue->sq_lock);
	return left;
}

/* Pages of all chunks that are not unmapped yet, in the page cache or not. */
unsigned int lbio_pool_pages(struct lbio_queue *queue)
{
	struct lbio_chunk *chunk;
	unsigned int pages = 0;

	spin_lock(&queue->sq_lock);
	if (queue->chunk)
		pages += queue->chunk->nr;
	if (queue->next)
		pages += queue->next->nr;
	list_for_each_entry(chunk, &queue->full, list)
		pages += chunk->nr;
	spin_unlock(&queue->sq_lock);
	return pages;
}

static unsigned long lbio_pool_count(struct shrinker *shrinker,
				     struct shrink_control *sc)
{
	struct lbio_dev *dev = shrinker->private_data;
	unsigned long left = 0;
	unsigned int i;

	for (i = 0; i < dev->nr_queues; i++)
		if (READ_ONCE(dev->queues[i].ring))
			left += lbio_pool_left(&dev->queues[i]);
	return left ?: SHRINK_EMPTY;
}

/*
 * Reclaim may be on behalf of anybody, a refill of the same queue too: nothing
 * is allocated under the lock that this takes, and nothing is waited for here.
 */
static unsigned long lbio_pool_scan(struct shrinker *shrinker,
				    struct shrink_control *sc)
{
	struct lbio_dev *dev = shrinker->private_data;
	unsigned long freed = 0;
	unsigned int i;

	for (i = 0; i < dev->nr_queues && freed < sc->nr_to_scan; i++) {
		if (!READ_ONCE(dev->queues[i].ring))
			continue;
		freed += lbio_pool_left(&dev->queues[i]);
		lbio_pool_drain(&dev->queues[i]);
	}
	return freed;
}

/* Lets pages be given back when memory is short. Without it, a tick does. */
void lbio_pool_add_shrinker(struct lbio_dev *dev)
{
	dev->shrinker = shrinker_alloc(0, "lbio:%s", dev->name);
	if (!dev->shrinker)
		return;
	dev->shrinker->count_objects = lbio_pool_count;
	dev->shrinker->scan_objects = lbio_pool_scan;
	dev->shrinker->private_data = dev;
	shrinker_register(dev->shrinker);
}
