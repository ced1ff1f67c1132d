/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The parts of the asynchronous I/O stack that are written in Rust: policies
 * (block/lbio/policy.rs) and queue pairs (block/lbio/ring.rs).
 */
#ifndef _LINUX_LBIO_H
#define _LINUX_LBIO_H

#include <linux/types.h>

u64 lbio_poll_budget(u64 state, u64 max_ns);
u64 lbio_poll_learn(u64 state, u64 waited_ns, u64 max_ns);

/* Most commands outstanding in one queue pair. */
#define LBIO_SLOTS		63

/* Most pages of a command. */
#define LBIO_MAX_PAGES		8

/* Status of a command that was cancelled; no NVMe status field is so wide. */
#define LBIO_CANCELLED		0xffff

struct lbio_chunk_state;
struct lbio_dev;
struct lbio_queue;
struct lbio_ring;

/**
 * struct lbio_ns - a namespace that LBIO may read
 * @dev: its controller, or NULL if it is not to be read
 * @nsid: its number
 * @lba_shift: binary logarithm of its logical block size in bytes
 * @sector_shift: the same in sectors
 * @page_more: how many logical blocks follow the first of a page
 * @kind: of @nsid and @page_more, not zero
 *
 * The driver sets, changes and withdraws it while the queue is frozen. Whoever
 * holds a reference to the queue's usage counter may therefore use it.
 */
struct lbio_ns {
	struct lbio_dev *dev;
	u32 nsid;
	u8 lba_shift;
	u8 sector_shift;
	u8 page_more;
	u64 kind;
};

struct lbio_ring *lbio_ring_new(void *sqes, void *cqes, void *lists,
				u64 lists_dma, u16 depth);
size_t lbio_ring_bytes(void);
void lbio_ring_free(struct lbio_ring *ring);
void lbio_ring_reset(struct lbio_ring *ring, u16 sq_id);
s32 lbio_ring_submit(struct lbio_ring *ring, u32 nsid, u64 slba, u32 blocks,
		     u64 dma, u32 pages);
s32 lbio_ring_alloc(struct lbio_ring *ring);
s32 lbio_ring_write(struct lbio_ring *ring, u16 slot, u64 token, u32 nsid,
		    u64 slba, u32 blocks, const u64 *pages, u32 nr, bool fua);
s32 lbio_ring_read_page(struct lbio_ring *ring, struct lbio_chunk_state *chunk,
			const struct lbio_ns *ns, u64 dma, u64 sector);
void lbio_ring_prepare_page(struct lbio_ring *ring,
			    const struct lbio_chunk_state *chunk,
			    const struct lbio_ns *ns, u64 dma);
s32 lbio_ring_reap(struct lbio_ring *ring, struct lbio_queue *queue);
bool lbio_ring_is_done(struct lbio_ring *ring, u16 slot);
s32 lbio_ring_take(struct lbio_ring *ring, u16 slot);
bool lbio_ring_sleep(struct lbio_ring *ring, u16 slot, u64 token);
bool lbio_ring_hand_over(struct lbio_ring *ring, u16 slot, u64 from, u64 to);
void lbio_ring_cancel(struct lbio_ring *ring);
u64 lbio_ring_flying(struct lbio_ring *ring);

/* What lbio_ring_reap() and lbio_ring_cancel() call. */
void lbio_wake(u64 token);
void lbio_stray(struct lbio_queue *queue, u16 sq_id, u16 cid, u16 status);

/* State of a chunk of pages; only the functions below look inside. */
struct lbio_chunk_state {
	u8 pages;
	u8 taken;
	u32 flying;
};

/* How many pages were taken, and so where the next one is. */
static inline u32 lbio_chunk_taken(const struct lbio_chunk_state *chunk)
{
	return chunk->taken;
}

void lbio_chunk_init(struct lbio_chunk_state *chunk, u32 pages);
s32 lbio_chunk_take(struct lbio_chunk_state *chunk, u32 count);
void lbio_chunk_finish(struct lbio_chunk_state *chunk, u32 count);
void lbio_chunk_retire(struct lbio_chunk_state *chunk);
u32 lbio_chunk_left(const struct lbio_chunk_state *chunk);
bool lbio_chunk_is_idle(const struct lbio_chunk_state *chunk);

#endif /* _LINUX_LBIO_H */
