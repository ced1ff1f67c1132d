/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Policies of the asynchronous I/O stack that are written in Rust
 * (block/lbio/policy.rs).
 */
#ifndef _LINUX_LBIO_H
#define _LINUX_LBIO_H

#include <linux/types.h>

u64 lbio_poll_budget(u64 state, u64 max_ns);
u64 lbio_poll_learn(u64 state, u64 waited_ns, u64 max_ns);

#endif /* _LINUX_LBIO_H */
