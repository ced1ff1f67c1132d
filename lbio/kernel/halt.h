/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Waiting with the CPU halted instead of spinning: as long, without a task switch
 * either, and the CPU's power and its sibling's resources, in a virtual machine the
 * host's CPU, are not used up meanwhile. It takes longer to come back from.
 *
 * The waiting task stays the CPU's current one. For the scheduler, RCU and the tick
 * it runs, as it does while it spins; the CPU is not idle. Spinlocks of guests wait
 * like that, too.
 *
 * What ends a spin has to be told to a halted CPU by an interrupt:
 * - The completion. A queue's interrupt comes to one CPU; only there anybody halts.
 * - Somebody wants the CPU, or signals the task: the scheduler sends one, as the task
 *   does not claim to look by itself (TIF_POLLING_NRFLAG).
 * - All else (a task that became ready and has time, an interrupt that moved to
 *   another CPU or was lost, a time that is up) is found at the next tick. Where there
 *   may be none (nohz_full) nobody halts.
 * - Who waits for the lock of a fault sends nothing: with one nobody halts.
 */
#ifndef BLOCK_LBIO_HALT_H
#define BLOCK_LBIO_HALT_H

#include <linux/irqflags.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/smp.h>
#include <linux/tick.h>

#include "internal.h"

/*
 * Whether to halt until @queue's next completion, and if so with interrupts disabled,
 * for lbio_halt(): what the caller looks at in between does not change before the CPU
 * halts without waking it up.
 */
static __always_inline bool lbio_may_halt(const struct lbio_queue *queue)
{
#ifdef CONFIG_X86
	int cpu;

	if (!READ_ONCE(aios_poll_halt))
		return false;
	local_irq_disable();
	cpu = smp_processor_id();
	if (READ_ONCE(queue->irq_cpu) == cpu && !tick_nohz_full_cpu(cpu) &&
	    !need_resched() && !signal_pending(current))
		return true;
	local_irq_enable();
#endif
	return false;
}

/* After lbio_may_halt(): waits for an interrupt, unless what it is for is there. */
static __always_inline void lbio_halt(bool is_there)
{
#ifdef CONFIG_X86
	if (!is_there) {
		lbio_count(LBIO_EV_HALTED);
		/* Interrupts are let through by the halt, and none before it. */
		safe_halt();
		return;
	}
#endif
	local_irq_enable();
}

#endif /* BLOCK_LBIO_HALT_H */
