// SPDX-License-Identifier: GPL-2.0
/*
 * Adaptive hybrid polling of synchronous buffered reads.
 *
 * Going to sleep for a read and coming back costs two context switches, a trip
 * through the idle task and, on most machines, the exit from an idle state:
 * more than a fast drive needs to answer. A reader that opted in therefore
 * spins on the folio for as long as recent completions took, then sleeps as
 * ever. The completion itself still comes by interrupt, on the spinning CPU.
 *
 * Spinning takes a CPU from others. It ends when the scheduler wants the CPU,
 * when another task could run here, when a signal arrives, and at a bound that
 * the administrator sets (poll_max_ns).
 *
 * Nothing here changes what a reader may see: it only looks at PG_locked and
 * PG_uptodate of a folio it holds a reference to, as the sleeping path does.
 */

#include <linux/aios.h>
#include <linux/debugfs.h>
#include <linux/hash.h>
#include <linux/lbio.h>
#include <linux/log2.h>
#include <linux/pagemap.h>
#include <linux/percpu.h>
#include <linux/sched/clock.h>
#include <linux/sched/signal.h>
#include <linux/sched/stat.h>
#include <linux/seq_file.h>

#include "internal.h"

#define AIOS_POLL_SLOT_BITS	4

/* Longer than a fast drive's read, shorter than two context switches of idle. */
unsigned long aios_poll_max_ns = 50 * NSEC_PER_USEC;

/*
 * What is known of the waits for one (device, size of read). Slots are hashed
 * and shared without a lock: a reader may have moved to another CPU by the time
 * it stores what it learned, and two keys may fight over a slot. Either costs a
 * spin of the wrong length; all words are loaded and stored at once.
 *
 * What the last wait took (@waited, in ns, 0 for nothing) is learned from when
 * the next one begins: while the device works, and not while the data is there.
 */
struct aios_poll_slot {
	u64 key;
	u64 state;
	u64 waited;
};

struct aios_poll_cpu {
	struct aios_poll_slot slots[1 << AIOS_POLL_SLOT_BITS];
	u64 hits;
	u64 misses;
	u64 sleeps;
};

static DEFINE_PER_CPU(struct aios_poll_cpu, aios_poll_cpu);

static struct aios_poll_slot *aios_poll_slot(const struct inode *inode,
					     size_t count)
{
	struct aios_poll_slot *slot;
	u64 key;

	/* Reads of like size wait alike; never zero, the key of an unused slot. */
	key = (u64)inode->i_sb->s_dev << 8 | (ilog2(count | 1) + 1);
	slot = raw_cpu_ptr(&aios_poll_cpu)->slots +
	       hash_64(key, AIOS_POLL_SLOT_BITS);
	if (READ_ONCE(slot->key) != key) {
		WRITE_ONCE(slot->state, 0);
		WRITE_ONCE(slot->waited, 0);
		WRITE_ONCE(slot->key, key);
	}
	return slot;
}

/* What is known by now. */
static u64 aios_poll_state(struct aios_poll_slot *slot, u64 max_ns)
{
	u64 waited = READ_ONCE(slot->waited);
	u64 state = READ_ONCE(slot->state);

	if (waited) {
		state = lbio_poll_learn(state, waited, max_ns);
		WRITE_ONCE(slot->state, state);
		WRITE_ONCE(slot->waited, 0);
	}
	return state;
}

/*
 * The waiting loop, in a function of its own so that a profile tells waiting
 * from working. Returns whether the folio came unlocked.
 */
static noinline bool aios_spin_folio(struct folio *folio,
				     struct aios_poll *poll)
{
	while (folio_test_locked(folio)) {
		if (need_resched() || signal_pending(current) ||
		    !single_task_running())
			return false;
		/* A clock that went backwards ends the loop, too. */
		poll->now = local_clock();
		if (poll->now - poll->start >= poll->budget)
			return false;
		aios_spin_relax();
	}
	return true;
}

/*
 * Begins a wait for a read of @count bytes of @inode. Returns for how many
 * nanoseconds to spin; aios_poll_end() has to be called in any case.
 */
u64 aios_poll_begin(struct aios_poll *poll, const struct inode *inode,
		    size_t count)
{
	u64 max_ns = READ_ONCE(aios_poll_max_ns);

	poll->slot = NULL;
	if (!max_ns)
		return 0;
	poll->slot = aios_poll_slot(inode, count);
	poll->budget = lbio_poll_budget(aios_poll_state(poll->slot, max_ns),
					max_ns);
	poll->start = local_clock();
	poll->now = poll->start;
	return poll->budget;
}

/*
 * Ends a wait, successful while spinning (@hit) or asleep, and notes how long it
 * was. After a hit that is up to the last look at the clock.
 */
void aios_poll_end(struct aios_poll *poll, bool hit)
{
	if (!poll->slot)
		return;
	if (hit) {
		this_cpu_inc(aios_poll_cpu.hits);
	} else {
		if (poll->budget)
			this_cpu_inc(aios_poll_cpu.misses);
		else
			this_cpu_inc(aios_poll_cpu.sleeps);
		poll->now = local_clock();
	}
	/* The clocks of two CPUs may differ a little. */
	if (poll->now >= poll->start)
		WRITE_ONCE(poll->slot->waited, poll->now - poll->start + 1);
}

/**
 * aios_poll_folio - spin until a folio under read is up to date
 * @poll: filled in, for aios_poll_slept() if this fails
 * @inode: the inode that is read
 * @folio: the folio that is waited for; the caller holds a reference
 * @count: length of the read in bytes
 *
 * Return: true if @folio is up to date. Otherwise the caller sleeps for it,
 * or handles its error, as it would have without this call.
 */
bool aios_poll_folio(struct aios_poll *poll, const struct inode *inode,
		     struct folio *folio, size_t count)
{
	poll->slot = NULL;
	if (!folio_test_locked(folio))
		return folio_test_uptodate(folio);

	if (!aios_poll_begin(poll, inode, count) ||
	    !aios_spin_folio(folio, poll))
		return false;
	aios_poll_end(poll, true);
	/* A failed read is not up to date; its retry is no wait to learn from. */
	poll->slot = NULL;
	return folio_test_uptodate(folio);
}

/**
 * aios_poll_slept - learn from a wait that ended in sleep
 * @poll: as aios_poll_folio() left it
 */
void aios_poll_slept(struct aios_poll *poll)
{
	aios_poll_end(poll, false);
}

static int poll_show(struct seq_file *m, void *unused)
{
	u64 hits = 0, misses = 0, sleeps = 0;
	int cpu;

	for_each_possible_cpu(cpu) {
		const struct aios_poll_cpu *p = per_cpu_ptr(&aios_poll_cpu, cpu);

		hits += READ_ONCE(p->hits);
		misses += READ_ONCE(p->misses);
		sleeps += READ_ONCE(p->sleeps);
	}
	seq_printf(m, "hits %llu\nmisses %llu\nsleeps %llu\n", hits, misses,
		   sleeps);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(poll);

void aios_poll_debugfs(struct dentry *root)
{
	debugfs_create_file("poll", 0444, root, NULL, &poll_fops);
}
