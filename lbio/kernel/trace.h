/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM lbio

#if !defined(BLOCK_LBIO_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define BLOCK_LBIO_TRACE_H

#include <linux/bio.h>
#include <linux/tracepoint.h>

#include "internal.h"

/* The drive was told. */
TRACE_EVENT(lbio_submit,
	    TP_PROTO(const struct lbio_io *io, sector_t sector),
	    TP_ARGS(io, sector),
	    TP_STRUCT__entry(__field(dev_t, dev)
			     __field(u16, slot)
			     __field(u8, pages)
			     __field(sector_t, sector)
	    ),
	    TP_fast_assign(__entry->dev = io->bdev->bd_dev;
			   __entry->slot = io->slot;
			   __entry->pages = io->nr;
			   __entry->sector = sector;
	    ),
	    TP_printk("%d,%d slot %u sector %llu + %u",
		      MAJOR(__entry->dev), MINOR(__entry->dev), __entry->slot,
		      (unsigned long long)__entry->sector,
		      __entry->pages * (unsigned int)PAGE_SECTORS)
);

/* The reader, or who acts for him, has seen the answer. */
TRACE_EVENT(lbio_complete,
	    TP_PROTO(const struct lbio_io *io, int status),
	    TP_ARGS(io, status),
	    TP_STRUCT__entry(__field(dev_t, dev)
			     __field(u16, slot)
			     __field(u8, pages)
			     __field(bool, valid)
			     __field(int, status)
	    ),
	    TP_fast_assign(__entry->dev = io->bdev->bd_dev;
			   __entry->slot = io->slot;
			   __entry->pages = io->nr;
			   __entry->valid = io->valid;
			   __entry->status = status;
	    ),
	    TP_printk("%d,%d slot %u pages %u status %#x%s",
		      MAJOR(__entry->dev), MINOR(__entry->dev), __entry->slot,
		      __entry->pages, __entry->status,
		      __entry->valid ? "" : " not wanted")
);

/* The ordinary path has to read, or to read again; why as in debugfs. */
TRACE_EVENT(lbio_fallback,
	    TP_PROTO(const struct inode *inode, pgoff_t index,
		     enum lbio_event reason),
	    TP_ARGS(inode, index, reason),
	    TP_STRUCT__entry(__field(dev_t, dev)
			     __field(u64, ino)
			     __field(pgoff_t, index)
			     __string(reason, lbio_event_names[reason])
	    ),
	    TP_fast_assign(__entry->dev = inode->i_sb->s_dev;
			   __entry->ino = inode->i_ino;
			   __entry->index = index;
			   __assign_str(reason);
	    ),
	    TP_printk("%d,%d ino %llu page %lu: %s",
		      MAJOR(__entry->dev), MINOR(__entry->dev), __entry->ino,
		      __entry->index, __get_str(reason))
);

/* As above, of a read of a block device, to whose beginning @sector counts. */
TRACE_EVENT(lbio_raw_fallback,
	    TP_PROTO(const struct block_device *bdev, sector_t sector,
		     enum lbio_event reason),
	    TP_ARGS(bdev, sector, reason),
	    TP_STRUCT__entry(__field(dev_t, dev)
			     __field(sector_t, sector)
			     __string(reason, lbio_event_names[reason])
	    ),
	    TP_fast_assign(__entry->dev = bdev->bd_dev;
			   __entry->sector = sector;
			   __assign_str(reason);
	    ),
	    TP_printk("%d,%d sector %llu: %s",
		      MAJOR(__entry->dev), MINOR(__entry->dev),
		      (unsigned long long)__entry->sector, __get_str(reason))
);

/* The drive was told of a write; from the beginning of the drive. */
TRACE_EVENT(lbio_write_submit,
	    TP_PROTO(const struct bio *bio, u16 slot, sector_t sector),
	    TP_ARGS(bio, slot, sector),
	    TP_STRUCT__entry(__field(dev_t, dev)
			     __field(u16, slot)
			     __field(bool, fua)
			     __field(unsigned int, sectors)
			     __field(sector_t, sector)
	    ),
	    TP_fast_assign(__entry->dev = bio_dev(bio);
			   __entry->slot = slot;
			   __entry->fua = bio->bi_opf & REQ_FUA;
			   __entry->sectors = bio_sectors(bio);
			   __entry->sector = sector;
	    ),
	    TP_printk("%d,%d slot %u sector %llu + %u%s",
		      MAJOR(__entry->dev), MINOR(__entry->dev), __entry->slot,
		      (unsigned long long)__entry->sector, __entry->sectors,
		      __entry->fua ? " FUA" : "")
);

/* Its answer was seen. Unless the status is 0 the ordinary path writes again. */
TRACE_EVENT(lbio_write_complete,
	    TP_PROTO(const struct bio *bio, u16 slot, int status),
	    TP_ARGS(bio, slot, status),
	    TP_STRUCT__entry(__field(dev_t, dev)
			     __field(u16, slot)
			     __field(int, status)
	    ),
	    TP_fast_assign(__entry->dev = bio_dev(bio);
			   __entry->slot = slot;
			   __entry->status = status;
	    ),
	    TP_printk("%d,%d slot %u status %#x",
		      MAJOR(__entry->dev), MINOR(__entry->dev), __entry->slot,
		      __entry->status)
);

/* The ordinary path has to write; why as in debugfs. */
TRACE_EVENT(lbio_write_fallback,
	    TP_PROTO(const struct bio *bio, enum lbio_event reason),
	    TP_ARGS(bio, reason),
	    TP_STRUCT__entry(__field(dev_t, dev)
			     __field(unsigned int, sectors)
			     __field(sector_t, sector)
			     __string(reason, lbio_event_names[reason])
	    ),
	    TP_fast_assign(__entry->dev = bio_dev(bio);
			   __entry->sectors = bio_sectors(bio);
			   __entry->sector = bio->bi_iter.bi_sector;
			   __assign_str(reason);
	    ),
	    TP_printk("%d,%d sector %llu + %u: %s",
		      MAJOR(__entry->dev), MINOR(__entry->dev),
		      (unsigned long long)__entry->sector, __entry->sectors,
		      __get_str(reason))
);

#endif /* BLOCK_LBIO_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
