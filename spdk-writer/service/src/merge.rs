// SPDX-License-Identifier: MIT

//! Several layers as one.

use crate::device::{
    Called,
    Device,
    Draft, //
};
use crate::error::Error;
use crate::folder::Folder;
use crate::image::Image;
use obd_core::budget::{
    Budget,
    MAX_MEMORY, //
};
use obd_core::image::MAX_LAYERS;
use obd_host::Host;
use obd_writer::source::ImageSource;
use obd_writer::{
    Options,
    Sink, //
};
use std::ops::{
    ControlFlow,
    Range, //
};
use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};

/// Which layers of a device may be merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Those that it made.
    Own,
    /// All of them.
    All,
}

/// Which of the layers that the device made should become one, if it may have
/// `most`: the newest ones, so many that there is time until the next merge, and
/// older ones that are no larger than what is written anyway. So what is large is
/// written rarely.
pub(crate) fn due(image: &Image, most: usize) -> Option<Range<usize>> {
    let own = image.own();
    if own.len() <= most.max(1) {
        return None;
    }
    let size = |at: usize| image.lowers[at].size.unwrap_or(0);
    // As many as leave half, the merged one included.
    let least = (own.len() + 1).saturating_sub(most.max(2) / 2).max(2);
    let mut start = own.end - least.min(own.len());
    let mut sum: u64 = (start..own.end).map(size).sum();
    while start > own.start && size(start - 1) <= sum {
        start -= 1;
        sum = sum.saturating_add(size(start));
    }
    Some(start..own.end)
}

/// Writes what `files` hold, layers from bottom to top, as layer `number`, durable
/// when this returns; how long it is, bytes.
pub(crate) fn write<F: Folder>(
    folder: &F,
    files: &[String],
    number: u64,
    options: &Options,
    size: u64,
    stop: &AtomicBool,
) -> Result<u64, Error> {
    let name = crate::image::name(number);
    let fail = |name: &str, error: obd_core::Error<std::io::Error>| Error::Layer {
        name: name.into(),
        errno: match &error {
            obd_core::Error::Io { source, .. } => source.raw_os_error(),
            _ => None,
        },
        reason: error.to_string(),
    };
    let mut budget = Budget::new(MAX_MEMORY);
    let mut open = |file: &str| {
        let source = folder.open(file).map_err(Error::file("open", file))?;
        obd_core::Layer::<_, Host>::open_within(source, &mut budget)
            .map_err(|error| fail(file, error))
    };
    let mut layers = Vec::with_capacity(files.len());
    for file in files {
        layers.push(open(file)?);
    }
    let image = obd_core::Image::new(layers).map_err(|error| fail(&name, error))?;
    if image.size() != size {
        let reason = format!("{} bytes, the disk has {size}", image.size());
        return Err(Error::image(name, reason));
    }
    // Set by a signal handler and read here: nothing else depends on it.
    let go = |_, _| match stop.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    let source = ImageSource::new(&image);
    let (draft, stats) = Draft::write(folder, number, Called::Draft, &source, options, go)?;
    draft.finish().map_err(Error::file("write", &name))?;
    // Those it replaces are removed: it has to be one before.
    let written = open(&name)?;
    let segments = written.segments().len() as u64;
    if segments != stats.segments || written.info().virtual_size != size {
        return Err(Error::image(name, "is not what was written"));
    }
    Ok(stats.stored)
}

/// Merges layers of a device that is not attached; how many became one, if any
/// did.
///
/// # Errors
///
/// [`Error`]; the device is as before, or as after.
pub fn compact<F: Folder>(
    folder: &F,
    depth: Depth,
    options: &Options,
    stop: &AtomicBool,
) -> Result<Option<usize>, Error> {
    let mut device = Device::open(folder)?;
    // What is only in the log is over all layers, so it may as well come later.
    let is_full = device.image().lowers.len() >= MAX_LAYERS;
    if !is_full {
        device.recover(options)?;
    }
    let layers = match depth {
        Depth::Own => device.image().own(),
        Depth::All => 0..device.image().lowers.len(),
    };
    if layers.len() < 2 {
        return Ok(None);
    }
    let files = files(device.image(), &layers);
    let number = device.number();
    let name = crate::image::name(number);
    let size = device.image().obd.size;
    let stored = match write(folder, &files, number, options, size, stop) {
        Ok(stored) => stored,
        Err(error) => {
            device.discard(name);
            return Err(error);
        }
    };
    let count = layers.len();
    device.replace(0, layers, &name, stored)?;
    device.sweep();
    if is_full {
        device.recover(options)?;
    }
    Ok(Some(count))
}

/// The files of some layers.
pub(crate) fn files(image: &Image, layers: &Range<usize>) -> Vec<String> {
    let lowers = image.lowers[layers.clone()].iter();
    lowers.map(|lower| lower.file.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{
        Lower,
        name, //
    };

    fn image(given: usize, own: &[u64]) -> Image {
        let mut lowers = vec![Lower::new("/given", None); given];
        let own = own.iter().enumerate();
        lowers.extend(own.map(|(i, size)| Lower::new(name(i as u64 + 1), Some(*size))));
        Image::new(4096, lowers)
    }

    #[test]
    fn given_layers_are_left_alone() {
        assert_eq!(due(&image(40, &[1; 4]), 4), None);
        assert_eq!(due(&image(40, &[1; 5]), 4), Some(40..45));
        // The oldest is larger than all the others.
        assert_eq!(due(&image(2, &[100, 1, 1, 1, 1]), 4), Some(3..7));
        assert_eq!(due(&image(2, &[1 << 40, 100, 1, 1, 1]), 4), Some(3..7));
        assert_eq!(due(&image(0, &[100, 1]), 1), Some(0..2));
        assert_eq!(due(&image(0, &[7]), 1), None);
        assert_eq!(due(&image(0, &[7]), 0), None);
    }

    #[test]
    fn what_is_written_is_a_multiple_of_the_logarithm() {
        // A thousand commits of one unit each.
        let mut sizes = Vec::new();
        let mut written = 0;
        for _ in 0..1000 {
            sizes.push(1);
            if let Some(layers) = due(&image(0, &sizes), 16) {
                let sum = sizes[layers.clone()].iter().sum();
                written += sum;
                sizes.splice(layers, [sum]);
            }
            assert!(sizes.len() <= 16);
        }
        assert!(written < 6000, "{written}");
    }
}
