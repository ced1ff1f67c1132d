// SPDX-License-Identifier: GPL-2.0
/*
 * LBIO's pages: mapped for DMA ahead of time, unmapped long after.
 *
 * Mapping a page through an IOMMU and unmapping it costs more than all else that
 * a read has to do, and hardly more for many pages than for one. Each queue
 * therefore has a chunk of pages that are mapped by one call, and adjacent for
 * the device. Where memory is fragmented the IOMMU puts single pages side by
 * side; without one, mapping is cheap, and the chunk smaller. Reads take the
 * pages one by one and put them into the page cache. One call unmaps the chunk
 * when its last page has been taken and no read into it is in flight.
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
#include <linux/moduleparam.h>
#include <linux/pci.h>
#include <linux/scatterlist.h>
#include <linux/sched/mm.h>
#include <linux/shrinker.h>
#include <linux/slab.h>
#include <linux/swiotlb.h>

#include "internal.h"

/* A chunk is used up or given back within this time, give or take a tick. */
#define LBIO_CHUNK_AGE		HZ

/* Largest chunk of adjacent pages to ask for; tests have fragmented memory so. */
static int lbio_chunk_order = LBIO_CHUNK_ORDER;

#undef MODULE_PARAM_PREFIX
#define MODULE_PARAM_PREFIX "lbio."
module_param_named(chunk_order, lbio_chunk_order, int, 0644);
MODULE_PARM_DESC(chunk_order, "largest order of adjacent pages to read into (0 to 5)");

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

/*
 * Finds out whether mappings may outlive what they were made for, and whether
 * the IOMMU can put single pages side by side.
 */
void lbio_dma_init(struct lbio_dev *dev)
{
	struct iommu_domain *domain = iommu_get_domain_for_dev(dev->dma_dev);

	dev->scatter = domain && domain->type == IOMMU_DOMAIN_DMA_FQ;
	dev->lazy = dev->scatter || !domain ||
		    domain->type == IOMMU_DOMAIN_IDENTITY;
}

/*
 * Gets 1 << @order adjacent pages, more than one only if they are there, which
 * costs no one else a thing. Movable, as pages of the page cache are; the chunk's
 * reference is short.
 */
static bool lbio_chunk_fill(struct lbio_chunk *chunk, int node, int order)
{
	gfp_t gfp = GFP_HIGHUSER_MOVABLE | __GFP_NOWARN;
	struct page *page;
	unsigned int i;

	if (order)
		gfp = (gfp & ~__GFP_DIRECT_RECLAIM) | __GFP_NOMEMALLOC;
	else
		gfp |= __GFP_NORETRY;
	page = alloc_pages_node(node, gfp, order);
	if (!page)
		return false;
	if (order)
		split_page(page, order);
	chunk->nr = 1 << order;
	for (i = 0; i < chunk->nr; i++)
		chunk->pages[i] = page + i;
	return true;
}

/* Gets single pages, for the IOMMU to put side by side; all of one node. */
static bool lbio_chunk_scatter(struct lbio_chunk *chunk, int node)
{
	gfp_t gfp = (GFP_HIGHUSER_MOVABLE & ~__GFP_DIRECT_RECLAIM) |
		    __GFP_NOMEMALLOC | __GFP_THISNODE | __GFP_NOWARN;
	unsigned int i;

	chunk->nr = alloc_pages_bulk_node(gfp, node, LBIO_CHUNK_PAGES,
					  chunk->pages);
	if (!chunk->nr)
		return false;
	chunk->sg = kmalloc_objs(*chunk->sg, chunk->nr, GFP_KERNEL);
	if (!chunk->sg) {
		for (i = 0; i < chunk->nr; i++)
			__free_page(chunk->pages[i]);
		return false;
	}
	sg_init_table(chunk->sg, chunk->nr);
	for (i = 0; i < chunk->nr; i++)
		sg_set_page(&chunk->sg[i], chunk->pages[i], PAGE_SIZE, 0);
	return true;
}

static bool lbio_chunk_get_pages(const struct lbio_dev *dev,
				 struct lbio_chunk *chunk)
{
	int node = dev->lazy ? numa_node_id() : dev_to_node(dev->dma_dev);
	int order = dev->lazy ? min(READ_ONCE(lbio_chunk_order),
				    LBIO_CHUNK_ORDER) : 0;

	for (; order > 0; order--) {
		if (lbio_chunk_fill(chunk, node, order))
			return true;
		/* For the drive single pages do as well. */
		if (dev->scatter)
			break;
	}
	return (dev->scatter && lbio_chunk_scatter(chunk, node)) ||
	       lbio_chunk_fill(chunk, node, 0);
}

static bool lbio_chunk_map(struct lbio_dev *dev, struct lbio_chunk *chunk)
{
	int ranges;

	if (!chunk->sg) {
		chunk->dma = dma_map_page(dev->dma_dev, chunk->pages[0], 0,
					  (size_t)chunk->nr << PAGE_SHIFT,
					  DMA_FROM_DEVICE);
		return !dma_mapping_error(dev->dma_dev, chunk->dma);
	}
	ranges = dma_map_sg(dev->dma_dev, chunk->sg, chunk->nr,
			    DMA_FROM_DEVICE);
	if (likely(ranges == 1)) {
		chunk->dma = sg_dma_address(chunk->sg);
		return true;
	}
	if (ranges) {
		/* This one does not put them side by side. */
		WRITE_ONCE(dev->scatter, false);
		dma_unmap_sg(dev->dma_dev, chunk->sg, chunk->nr,
			     DMA_FROM_DEVICE);
	}
	return false;
}

/* Drops the references of a chunk that is not mapped. */
static void lbio_chunk_put(struct lbio_chunk *chunk)
{
	unsigned int i;

	for (i = 0; i < chunk->nr; i++)
		put_page(chunk->pages[i]);
	kfree(chunk->sg);
	kfree(chunk);
}

static struct lbio_chunk *lbio_chunk_alloc(struct lbio_queue *queue)
{
	struct lbio_chunk *chunk;

	chunk = kzalloc_obj(*chunk, GFP_KERNEL | __GFP_NOWARN);
	if (!chunk)
		return NULL;
	if (!lbio_chunk_get_pages(queue->dev, chunk)) {
		kfree(chunk);
		return NULL;
	}
	if (!lbio_chunk_map(queue->dev, chunk)) {
		lbio_chunk_put(chunk);
		return NULL;
	}
	lbio_chunk_init(&chunk->state, chunk->nr);
	chunk->born = jiffies;
	lbio_count(LBIO_EV_CHUNK);
	if (chunk->sg)
		lbio_count(LBIO_EV_SCATTERED);
	if (queue->dev->lazy && chunk->nr < LBIO_CHUNK_PAGES)
		lbio_count(LBIO_EV_SMALL_CHUNK);
	return chunk;
}

/* Unmaps a chunk that nothing is in flight into, and drops its references. */
static void lbio_chunk_free(struct lbio_queue *queue, struct lbio_chunk *chunk)
{
	struct device *dma_dev = queue->dev->dma_dev;
	/* What was read has been synced, and may have been written to since. */
	unsigned long attrs = queue->dev->lazy ? DMA_ATTR_SKIP_CPU_SYNC : 0;

	if (chunk->sg)
		dma_unmap_sg_attrs(dma_dev, chunk->sg, chunk->nr,
				   DMA_FROM_DEVICE, attrs);
	else
		dma_unmap_page_attrs(dma_dev, chunk->dma,
				     (size_t)chunk->nr << PAGE_SHIFT,
				     DMA_FROM_DEVICE, attrs);
	lbio_chunk_put(chunk);
}

/* Puts a chunk that pages are taken from aside. */
static void lbio_pool_set_aside(struct lbio_queue *queue,
				struct lbio_chunk **chunk)
	__must_hold(&queue->sq_lock)
{
	if (!*chunk)
		return;
	lbio_chunk_retire(&(*chunk)->state);
	list_add_tail(&(*chunk)->list, &queue->full);
	WRITE_ONCE(*chunk, NULL);
}

/* Lets no more pages be taken. */
void lbio_pool_retire(struct lbio_queue *queue)
	__must_hold(&queue->sq_lock)
{
	lbio_pool_set_aside(queue, &queue->chunk);
	lbio_pool_set_aside(queue, &queue->next);
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
		if (!queue->ticking)
			lbio_start_tick(queue);
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
	if (!queue->used)
		lbio_pool_retire(queue);
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
	lbio_pool_retire(queue);
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
