/* SPDX-License-Identifier: GPL-2.0 */
#ifndef BLOCK_LBIO_INTERNAL_H
#define BLOCK_LBIO_INTERNAL_H

struct dentry;

extern unsigned long aios_poll_max_ns;

void aios_poll_debugfs(struct dentry *root);

#endif /* BLOCK_LBIO_INTERNAL_H */
