// SPDX-License-Identifier: MIT
/*
 * What of SPDK's interface is structures, bit fields and inline functions, as
 * plain calls. Options never leave this file.
 */
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "spdk/env.h"
#include "spdk/log.h"
#include "spdk/nvme.h"
#include "spdk/version.h"

#if SPDK_VERSION_MAJOR != 20 || SPDK_VERSION_MINOR != 7
#error "SPDK 20.07 is needed"
#endif

/* How a command ended, as `Answer` in ffi.rs. */
struct obd_answer {
	/* DONE, status code type and status code; 0 while there is none. */
	uint32_t status;
	/* Dword 0 of the completion. */
	uint32_t result;
};

#define DONE	0x80000000u

/* What SPDK complained of last. */
static char last_error[256];

static void take_log(int level, const char *file, const int line,
		     const char *func, const char *format, va_list args)
{
	if (level > SPDK_LOG_ERROR)
		return;
	vsnprintf(last_error, sizeof(last_error), format, args);
	last_error[strcspn(last_error, "\n")] = '\0';
}

const char *obd_spdk_last_error(void)
{
	return last_error;
}

static void done(void *arg, const struct spdk_nvme_cpl *cpl)
{
	struct obd_answer *answer = arg;

	answer->result = cpl->cdw0;
	answer->status = DONE | (uint32_t)cpl->status.sct << 8 | cpl->status.sc;
}

/* Starts the controller at a PCI address; NULL if it does not start. */
struct spdk_nvme_ctrlr *obd_spdk_connect(const char *address)
{
	struct spdk_nvme_transport_id id = { 0 };
	struct spdk_nvme_ctrlr_opts opts;
	struct spdk_nvme_ctrlr *ctrlr;
	struct sigaction bus;

	last_error[0] = '\0';
	spdk_log_open(take_log);
	spdk_nvme_trid_populate_transport(&id, SPDK_NVME_TRANSPORT_PCIE);
	snprintf(id.traddr, sizeof(id.traddr), "%s", address);
	spdk_nvme_ctrlr_get_default_ctrlr_opts(&opts, sizeof(opts));
	opts.num_io_queues = 1;
	opts.use_cmb_sqs = false;
	/* SPDK takes every SIGBUS for a drive that was pulled out. */
	sigaction(SIGBUS, NULL, &bus);
	ctrlr = spdk_nvme_connect(&id, &opts, sizeof(opts));
	sigaction(SIGBUS, &bus, NULL);
	return ctrlr;
}

/*
 * A queue pair, whose doorbell is rung by
 * spdk_nvme_qpair_process_completions().
 */
struct spdk_nvme_qpair *obd_spdk_queue(struct spdk_nvme_ctrlr *ctrlr,
				       uint32_t depth, uint32_t requests)
{
	struct spdk_nvme_io_qpair_opts opts;

	spdk_nvme_ctrlr_get_default_io_qpair_opts(ctrlr, &opts, sizeof(opts));
	opts.io_queue_size = depth;
	opts.io_queue_requests = requests;
	opts.delay_cmd_submit = true;
	return spdk_nvme_ctrlr_alloc_io_qpair(ctrlr, &opts, sizeof(opts));
}

/* Actions, as in ffi.rs. */
enum { READ, WRITE, FLUSH, DISCARD, WRITE_ZEROES, WRITE_THROUGH };

int obd_spdk_submit(struct spdk_nvme_ns *ns, struct spdk_nvme_qpair *qpair,
		    int action, void *data, uint64_t first, uint32_t blocks,
		    struct obd_answer *answer)
{
	struct spdk_nvme_dsm_range range = { 0 };

	answer->status = 0;
	switch (action) {
	case READ:
		return spdk_nvme_ns_cmd_read(ns, qpair, data, first, blocks,
					     done, answer, 0);
	case WRITE:
		return spdk_nvme_ns_cmd_write(ns, qpair, data, first, blocks,
					      done, answer, 0);
	case WRITE_THROUGH:
		return spdk_nvme_ns_cmd_write(ns, qpair, data, first, blocks,
				done, answer,
				SPDK_NVME_IO_FLAGS_FORCE_UNIT_ACCESS);
	case FLUSH:
		return spdk_nvme_ns_cmd_flush(ns, qpair, done, answer);
	case DISCARD:
		range.starting_lba = first;
		range.length = blocks;
		return spdk_nvme_ns_cmd_dataset_management(ns, qpair,
				SPDK_NVME_DSM_ATTR_DEALLOCATE, &range, 1, done,
				answer);
	case WRITE_ZEROES:
		return spdk_nvme_ns_cmd_write_zeroes(ns, qpair, first, blocks,
						     done, answer, 0);
	}
	return -1;
}

/* Asks for the command that has `command` as its answer to be given up. */
int obd_spdk_abort(struct spdk_nvme_ctrlr *ctrlr,
		   struct spdk_nvme_qpair *qpair, struct obd_answer *command,
		   struct obd_answer *answer)
{
	answer->status = 0;
	return spdk_nvme_ctrlr_cmd_abort_ext(ctrlr, qpair, command, done,
					     answer);
}

int obd_spdk_feature(struct spdk_nvme_ctrlr *ctrlr, uint8_t feature,
		     struct obd_answer *answer)
{
	answer->status = 0;
	return spdk_nvme_ctrlr_cmd_get_feature(ctrlr, feature, 0, NULL, 0, done,
					       answer);
}

/* The register CSTS. */
uint32_t obd_spdk_status(struct spdk_nvme_ctrlr *ctrlr)
{
	return spdk_nvme_ctrlr_get_regs_csts(ctrlr).raw;
}
