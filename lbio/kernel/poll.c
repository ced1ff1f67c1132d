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
unsigned long aios_poll_max_ns __read_mostly = 50 * NSEC_PER_USEC;

/* Waking up takes longer than looking again, and it leaves the CPU to nobody. */
bool aios_poll_halt __read_mostly;

DEFINE_PER_CPU(struct aios_poll_events, aios_poll_events);

/* Of waits for folios: one slot for each (device, size of read), hashed. */
struct aios_poll_key {
	u64 key;
	struct aios_poll_slot slot;
};

static DEFINE_PER_CPU(struct aios_poll_key[1 << AIOS_POLL_SLOT_BITS],
		      aios_poll_keys);

static struct aios_poll_slot *aios_poll_slot(const struct inode *inode,
					     size_t count)
{
	struct aios_poll_key *entry;
	u64 key;

	/* Reads of like size wait alike; never zero, the key of an unused slot. */
	key = (u64)inode->i_sb->s_dev << 8 | (ilog2(count | 1) + 1);
	entry = *raw_cpu_ptr(&aios_poll_keys) +
		hash_64(key, AIOS_POLL_SLOT_BITS);
	if (READ_ONCE(entry->key) != key) {
		WRITE_ONCE(entry->slot.state, 0);
		WRITE_ONCE(entry->slot.waited, 0);
		WRITE_ONCE(entry->slot.skip, 0);
		/* Is no bound, so that the budget is not believed. */
		WRITE_ONCE(entry->slot.max_ns, 0);
		WRITE_ONCE(entry->key, key);
	}
	return &entry->slot;
}

/* Brings what is known up to date: with the last wait, and with @max_ns. */
void aios_poll_learn(struct aios_poll_slot *slot, unsigned long max_ns)
{
	u64 waited = READ_ONCE(slot->waited);
	u64 state = READ_ONCE(slot->state);

	if (waited) {
		state = lbio_poll_learn(state, waited, max_ns);
		WRITE_ONCE(slot->state, state);
		WRITE_ONCE(slot->waited, 0);
	}
	WRITE_ONCE(slot->budget, lbio_poll_budget(state, max_ns));
	WRITE_ONCE(slot->max_ns, max_ns);
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
		if (aios_poll_is_over(poll))
			return false;
		aios_spin_relax();
	}
	return true;
}

/*
 * Notes how long a wait was that was spun (@hit) or slept for. Every so many
 * waits are enough to learn from, as long as they are hits. After a miss the next
 * one is learned from whatever it will be: choosing by what came before does not
 * favour the long ones, and a drive that becomes slow is soon found out.
 */
void aios_poll_note(struct aios_poll *poll, bool hit)
{
	struct aios_poll_slot *slot = poll->slot;
	bool learn = !READ_ONCE(slot->skip);

	WRITE_ONCE(slot->skip, hit ? AIOS_POLL_SKIP : 0);
	/* The clocks of two CPUs may differ a little. */
	if (learn && poll->now >= poll->start)
		WRITE_ONCE(slot->waited, poll->now - poll->start + 1);
}

/**
 * aios_poll_slept - learn from a wait that ended in sleep
 * @poll: as aios_poll_folio() or aios_poll_sleep() left it
 */
void aios_poll_slept(struct aios_poll *poll)
{
	if (!poll->slot || !poll->start)
		return;
	if (poll->budget)
		this_cpu_inc(aios_poll_events.misses);
	else
		this_cpu_inc(aios_poll_events.sleeps);
	poll->now = local_clock();
	aios_poll_note(poll, false);
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

	if (!aios_poll_begin(poll, aios_poll_slot(inode, count)) ||
	    !aios_spin_folio(folio, poll)) {
		aios_poll_sleep(poll);
		return false;
	}
	aios_poll_hit(poll);
	/* A failed read is not up to date; its retry is no wait to learn from. */
	poll->slot = NULL;
	return folio_test_uptodate(folio);
}

static int poll_show(struct seq_file *m, void *unused)
{
	u64 hits = 0, misses = 0, sleeps = 0;
	int cpu;

	for_each_possible_cpu(cpu) {
		const struct aios_poll_events *p =
			per_cpu_ptr(&aios_poll_events, cpu);

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
