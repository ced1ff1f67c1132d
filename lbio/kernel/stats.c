// SPDX-License-Identifier: GPL-2.0
/*
 * What became of reads and writes that LBIO was asked for: /sys/kernel/debug/aios/lbio.
 */

#include <linux/debugfs.h>
#include <linux/seq_file.h>

#include "internal.h"

DEFINE_PER_CPU(u64[LBIO_NR_EVENTS], lbio_events);

const char *const lbio_event_names[LBIO_NR_EVENTS] = {
	[LBIO_EV_READ] = "read",
	[LBIO_EV_RAW] = "raw",
	[LBIO_EV_WRITE] = "write",
	[LBIO_EV_REWRITE] = "rewrite",
	[LBIO_EV_EARLY] = "early",
	[LBIO_EV_HALTED] = "halted",
	[LBIO_EV_SLEPT] = "slept",
	[LBIO_EV_KILLED] = "killed",
	[LBIO_EV_NO_DEV] = "no_dev",
	[LBIO_EV_SHARED] = "shared",
	[LBIO_EV_UNFIT] = "unfit",
	[LBIO_EV_SEQUENTIAL] = "sequential",
	[LBIO_EV_INVALIDATING] = "invalidating",
	[LBIO_EV_UNMAPPED] = "unmapped",
	[LBIO_EV_DIRTY] = "dirty",
	[LBIO_EV_FROZEN] = "frozen",
	[LBIO_EV_STOPPED] = "stopped",
	[LBIO_EV_FULL] = "full",
	[LBIO_EV_NO_PAGE] = "no_page",
	[LBIO_EV_PRESENT] = "present",
	[LBIO_EV_NO_MEMORY] = "no_memory",
	[LBIO_EV_CHANGED] = "changed",
	[LBIO_EV_ERROR] = "error",
	[LBIO_EV_CANCELLED] = "cancelled",
	[LBIO_EV_STRAY] = "stray",
	[LBIO_EV_LATE] = "late",
	[LBIO_EV_TIMEOUT] = "timeout",
	[LBIO_EV_CHUNK] = "chunk",
	[LBIO_EV_SMALL_CHUNK] = "small_chunk",
	[LBIO_EV_SCATTERED] = "scattered",
};

static int lbio_show(struct seq_file *m, void *unused)
{
	unsigned int event, cpu;
	u64 sum;

	for (event = 0; event < LBIO_NR_EVENTS; event++) {
		sum = 0;
		for_each_possible_cpu(cpu)
			sum += READ_ONCE(per_cpu(lbio_events, cpu)[event]);
		seq_printf(m, "%s %llu\n", lbio_event_names[event], sum);
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(lbio);

void lbio_debugfs(struct dentry *root)
{
	debugfs_create_file("lbio", 0444, root, NULL, &lbio_fops);
}
