// SPDX-License-Identifier: MIT

//! `image.json`: overlaybd's image configuration, and what a read-write disk
//! needs besides.

use crate::error::Error;
use crate::folder::LAYERS;
use crate::log;
use crate::{
    BLOCK,
    MAX_SIZE, //
};
use obd_core::image::MAX_LAYERS;
use serde::{
    Deserialize,
    Serialize, //
};
use serde_json::{
    Map,
    Value, //
};
use std::ops::Range;
use std::path::Path;

/// The file in a device's folder.
pub const NAME: &str = "image.json";

/// It, in the making.
pub(crate) const DRAFT: &str = ".image.json.new";

/// What is understood here: without a log...
const VERSION: u32 = 1;

/// ... and with one, whom those who only know the other must not pass over.
const WITH_LOG: u32 = 2;

/// With layers in a store, and with a log or without.
const WITH_STORE: u32 = 3;

/// What the file says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Where layers that are not here would come from; upstream wants it there.
    #[serde(default)]
    repo_blob_url: String,
    /// Layers, bottom to top.
    pub lowers: Vec<Lower>,
    /// What overlaybd does not know.
    pub obd: Disk,
    /// What is not known here.
    #[serde(flatten)]
    other: Map<String, Value>,
}

/// A layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lower {
    /// Its file: absolute, or relative to the device's folder, as its own are.
    pub file: String,
    /// Bytes of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// What is not known here.
    #[serde(flatten)]
    other: Map<String, Value>,
}

/// The disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Disk {
    version: u32,
    /// Bytes of the disk.
    pub size: u64,
    /// The number of the next layer.
    pub next: u64,
    /// What was last done to the layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Step>,
    /// The log, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<log::State>,
    /// The store with its own layers, if these are in no files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<Place>,
}

/// A store of layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The block device, or the file: an absolute path.
    pub device: String,
    /// Which store it is: 32 hexadecimal digits.
    pub uuid: String,
}

/// A change of the layers: what the driver is told with `stack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The frozen layer that was committed; 0 if layers were merged.
    pub id: u64,
    /// How many layers there were before.
    pub before: usize,
    /// The first layer that was replaced.
    pub first: usize,
    /// How many were; 0: there is one more on top.
    pub nr: usize,
}

impl Disk {
    /// Who must not pass over it.
    fn needed(&self) -> u32 {
        match (&self.store, &self.log) {
            (Some(_), _) => WITH_STORE,
            (None, Some(_)) => WITH_LOG,
            (None, None) => VERSION,
        }
    }
}

impl Lower {
    /// The layer in `file`.
    pub fn new(file: impl Into<String>, size: Option<u64>) -> Self {
        Self {
            file: file.into(),
            size,
            other: Map::new(),
        }
    }

    /// Whether it was made by this device, as opposed to given.
    pub fn is_own(&self) -> bool {
        number(&self.file).is_some()
    }
}

/// What layer `number` is called.
pub(crate) fn name(number: u64) -> String {
    format!("{LAYERS}/{number:08}.lsmt")
}

/// What layer `number` is called in the making.
pub(crate) fn draft(number: u64) -> String {
    format!("{LAYERS}/.{number:08}.new")
}

/// Whether a layer that is called `name` is, or was to be, one of a read-write disk's own.
pub fn is_own(name: &str) -> bool {
    number(name).is_some() || is_draft(name)
}

/// The number of a layer of a device's own.
pub(crate) fn number(file: &str) -> Option<u64> {
    let digits = file.strip_prefix(LAYERS)?.strip_prefix('/')?;
    let number = digits.strip_suffix(".lsmt")?.parse().ok()?;
    (name(number) == file).then_some(number)
}

/// Whether `file` was such a layer in the making.
pub(crate) fn is_draft(file: &str) -> bool {
    let digits = file
        .strip_prefix(LAYERS)
        .and_then(|file| file.strip_prefix("/."))
        .and_then(|file| file.strip_suffix(".new"));
    digits.is_some_and(|digits| {
        digits
            .parse()
            .is_ok_and(|number: u64| draft(number) == file)
    })
}

impl Image {
    /// An image of `size` bytes over `lowers`.
    pub(crate) fn new(size: u64, lowers: Vec<Lower>) -> Self {
        Self {
            repo_blob_url: String::new(),
            lowers,
            obd: Disk {
                version: VERSION,
                size,
                next: 1,
                last: None,
                log: None,
                store: None,
            },
            other: Map::new(),
        }
    }

    /// Reads it.
    ///
    /// # Errors
    ///
    /// [`Error::Image`] if it is none, or cannot be that of a read-write disk.
    pub fn parse(name: &str, text: &[u8]) -> Result<Self, Error> {
        let image: Self = serde_json::from_slice(text)
            .map_err(|error| Error::image(name, format!("of no read-write disk: {error}")))?;
        match image.wrong() {
            Some(reason) => Err(Error::image(name, reason)),
            None => Ok(image),
        }
    }

    /// What cannot be.
    fn wrong(&self) -> Option<String> {
        let Disk {
            version,
            size,
            next,
            log,
            ..
        } = self.obd;
        if version != self.obd.needed() {
            return Some(format!("version {version} is not known"));
        }
        if let Some(wrong) = log.and_then(|log| log.wrong()) {
            return Some(wrong);
        }
        if size == 0 || !size.is_multiple_of(BLOCK) || size > MAX_SIZE {
            return Some(format!("a read-write disk cannot have {size} bytes"));
        }
        if self.lowers.is_empty() || self.lowers.len() > MAX_LAYERS {
            return Some(format!("{} layers", self.lowers.len()));
        }
        let given = self.own().start;
        for (i, lower) in self.lowers.iter().enumerate() {
            if lower.file.is_empty() {
                return Some(format!("lower {i} has no file"));
            }
            match number(&lower.file) {
                Some(number) if number >= next => {
                    return Some(format!("{} is of the future", lower.file));
                }
                None if i >= given => {
                    return Some(format!("{} is over the disk's own layers", lower.file));
                }
                None if !Path::new(&lower.file).is_absolute() => {
                    return Some(format!("{} is neither absolute nor a layer", lower.file));
                }
                _ => {}
            }
        }
        None
    }

    /// Has this log from here on, or none.
    pub(crate) fn set_log(&mut self, log: Option<log::State>) {
        self.obd.log = log;
        self.obd.version = self.obd.needed();
    }

    /// Has its own layers there.
    pub(crate) fn set_store(&mut self, store: Option<Place>) {
        self.obd.store = store;
        self.obd.version = self.obd.needed();
    }

    /// The layers that this device made: those on top.
    pub fn own(&self) -> Range<usize> {
        let given = self.lowers.iter().take_while(|lower| !lower.is_own());
        given.count()..self.lowers.len()
    }

    /// As stored.
    pub(crate) fn text(&self) -> Vec<u8> {
        // Strings, numbers, and what was read from such a file: cannot fail.
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(files: &[&str], size: u64) -> Image {
        let lowers = files.iter().map(|file| Lower::new(*file, None)).collect();
        let mut image = Image::new(size, lowers);
        image.obd.next = 10;
        image
    }

    #[test]
    fn what_is_not_known_stays() {
        let text = r#"{"repoBlobUrl": "https://r.example/v2/x/blobs",
            "lowers": [{"file": "/base", "digest": "sha256:00", "size": 5},
                {"file": "layers/00000003.lsmt", "size": 7}],
            "resultFile": "/r",
            "obd": {"version": 1, "size": 4096, "next": 4}}"#;
        let image = Image::parse("x", text.as_bytes()).unwrap();
        assert_eq!(image.own(), 1..2);
        let again = Image::parse("x", &image.text()).unwrap();
        assert_eq!(again, image);
        let text = String::from_utf8(image.text()).unwrap();
        for there in ["sha256:00", "r.example", "resultFile"] {
            assert!(text.contains(there), "{text}");
        }
    }

    #[test]
    fn what_cannot_be() {
        let good = "layers/00000001.lsmt";
        for (files, size, says) in [
            (&[good][..], 0, "0 bytes"),
            (&[good], 4097, "4097 bytes"),
            (&[good], MAX_SIZE + 4096, "bytes"),
            (&[], 4096, "0 layers"),
            (&["/a"; 256], 4096, "256 layers"),
            (&[""], 4096, "no file"),
            (&["a/b"], 4096, "neither"),
            (&["layers/1.lsmt"], 4096, "neither"),
            (&["layers/00000010.lsmt"], 4096, "future"),
            (&[good, "/b"], 4096, "over"),
        ] {
            let text = image(files, size).text();
            let error = Image::parse("x", &text).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert!(Image::parse("x", &image(&["/a", good], 4096).text()).is_ok());
        assert!(Image::parse("x", br#"{"lowers": []}"#).is_err());
    }

    #[test]
    fn names_and_numbers() {
        for n in [0, 1, 99_999_999, 100_000_000, u64::MAX] {
            assert_eq!(number(&name(n)), Some(n));
            assert!(is_draft(&draft(n)));
        }
        for none in ["layers/1.lsmt", "x/00000001.lsmt", "layers/+0000001.lsmt"] {
            assert_eq!(number(none), None);
            assert!(!is_draft(none));
        }
    }
}
