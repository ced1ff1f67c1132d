// SPDX-License-Identifier: MIT

//! overlaybd's image configuration, `config.v1.json`.

use crate::error::{
    Error,
    Result, //
};
use crate::open::{
    self,
    Place, //
};
use obd_service::image;
use serde::Deserialize;
use std::path::{
    Path,
    PathBuf, //
};

/// Names a layer can have in its directory, in the order they are tried.
const NAMES: [&str; 2] = ["overlaybd.commit", "overlaybd.sealed"];

/// What is read of a configuration; the rest concerns downloads and services.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Config {
    /// Where the layers' blobs are on a registry, which nothing here is read from.
    #[serde(default)]
    repo_blob_url: String,
    /// Sealed layers, bottom to top.
    #[serde(default)]
    lowers: Vec<Lower>,
    /// The layer that is written to.
    #[serde(default)]
    upper: Upper,
    /// Where to say how attaching went.
    #[serde(default)]
    result_file: String,
    /// What a read-write disk has besides.
    obd: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Lower {
    #[serde(default)]
    file: String,
    #[serde(default)]
    dir: String,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    target_file: String,
    #[serde(default)]
    target_digest: String,
}

#[derive(Debug, Default, Deserialize)]
struct Upper {
    #[serde(default)]
    index: String,
    #[serde(default)]
    data: String,
    #[serde(default)]
    target: String,
}

/// A layer to open.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LayerFile {
    /// The layer, or its data if it is still written to.
    pub(crate) place: Place,
    /// The index of a layer that is still written to.
    pub(crate) index: Option<PathBuf>,
    /// What the configuration says of the file's content.
    pub(crate) digest: Option<String>,
}

/// The layers of a configuration, bottom to top. What is relative is so to the
/// configuration's folder.
///
/// # Errors
///
/// A file that cannot be read or is no configuration, layers that are not on
/// this machine or of a kind that is not supported.
pub(crate) fn layers(path: &Path) -> Result<Vec<LayerFile>> {
    let base = path.parent().unwrap_or(Path::new(""));
    let wrong = |reason: String| Error::Config {
        path: path.into(),
        reason,
    };
    let config = read(path)?;
    if config.obd.as_ref().is_some_and(|obd| !obd["log"].is_null()) {
        // A read-write disk's, which has something that no layer has as long as it is
        // attached, and until it is attached again if it was not detached.
        let records = obd_service::log::records(path).map_err(|error| wrong(error.to_string()))?;
        if records > 0 {
            let reason = format!(
                "{records} records of the log are in no layer: attach it with --writable, and detach it"
            );
            return Err(wrong(reason));
        }
    }
    let place = config.obd.as_ref().map(|obd| &obd["store"]);
    let place = place.filter(|place| !place.is_null()).cloned();
    let mut layers = config.layers(base).map_err(wrong)?;
    if let Some(place) = place {
        let place: image::Place = serde_json::from_value(place).map_err(|error| Error::Config {
            path: path.into(),
            reason: format!("its store: {error}"),
        })?;
        find_in_store(&mut layers, base, &place).map_err(|error| match error {
            Failed::Store(error) => error,
            Failed::Config(reason) => Error::Config {
                path: path.into(),
                reason,
            },
        })?;
    }
    Ok(layers)
}

/// Why layers are not found in a store.
enum Failed {
    /// It cannot be read.
    Store(Error),
    /// It is not what the configuration says.
    Config(String),
}

/// Says of the layers that a disk with the folder `base` has in a store where they are.
fn find_in_store(
    layers: &mut [LayerFile],
    base: &Path,
    place: &image::Place,
) -> std::result::Result<(), Failed> {
    let device = Path::new(&place.device);
    let found = open::look_at_store(device).map_err(Failed::Store)?;
    let found = found.filter(|found| found.uuid == place.uuid);
    let found = found.ok_or(Failed::Config(format!(
        "{} is not its store, {}",
        place.device, place.uuid
    )))?;
    for layer in layers {
        let name = layer
            .place
            .path
            .strip_prefix(base)
            .ok()
            .and_then(Path::to_str);
        let Some(name) = name.filter(|name| image::is_own(name)) else {
            continue;
        };
        let there = found.layers.iter().find(|(there, _)| there == name);
        let (_, part) = there.ok_or(Failed::Config(format!("{name} is not in its store")))?;
        layer.place = Place {
            path: device.into(),
            part: Some(part.clone()),
        };
    }
    Ok(())
}

/// The file in which whoever wrote the configuration expects the result, relative as
/// the layers are.
///
/// # Errors
///
/// A file that cannot be read or is no configuration.
pub(crate) fn result_file(path: &Path) -> Result<Option<PathBuf>> {
    let base = path.parent().unwrap_or(Path::new(""));
    let name = read(path)?.result_file;
    Ok(Some(name)
        .filter(|name| !name.is_empty())
        .map(|name| base.join(name)))
}

fn read(path: &Path) -> Result<Config> {
    let text = std::fs::read(path).map_err(|error| Error::io("read", path, error))?;
    serde_json::from_slice(&text).map_err(|error| Error::Config {
        path: path.into(),
        reason: format!("no image configuration: {error}"),
    })
}

impl Config {
    fn layers(self, base: &Path) -> std::result::Result<Vec<LayerFile>, String> {
        let mut layers = Vec::new();
        for (i, lower) in self.lowers.into_iter().enumerate() {
            let path = lower
                .path(base, &self.repo_blob_url)
                .map_err(|reason| format!("lower {i}: {reason}"))?;
            layers.push(LayerFile {
                place: Place::whole(path),
                index: None,
                digest: Some(lower.digest).filter(|digest| !digest.is_empty()),
            });
        }
        if !self.upper.target.is_empty() {
            return Err("upper: a turboOCI (warp) layer is not supported".into());
        }
        if !self.upper.data.is_empty() {
            layers.push(LayerFile {
                place: Place::whole(base.join(self.upper.data)),
                index: Some(self.upper.index)
                    .filter(|index| !index.is_empty())
                    .map(|index| base.join(index)),
                digest: None,
            });
        }
        Ok(layers)
    }
}

impl Lower {
    fn path(&self, base: &Path, repo: &str) -> std::result::Result<PathBuf, String> {
        if !self.target_file.is_empty() || !self.target_digest.is_empty() {
            return Err("a turboOCI (warp) layer is not supported".into());
        }
        if !self.file.is_empty() {
            return Ok(base.join(&self.file));
        }
        if self.dir.is_empty() {
            return Err("has neither file nor dir: it is not on this machine".into());
        }
        NAMES
            .iter()
            .map(|name| base.join(&self.dir).join(name))
            .find(|path| path.exists())
            .ok_or_else(|| {
                let missing = format!("no {} in {}", NAMES.join(" or "), self.dir);
                match self.digest.is_empty() || repo.is_empty() {
                    true => missing,
                    false => format!(
                        "{missing}: {} is on the registry only ({repo}), nothing is downloaded",
                        self.digest
                    ),
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> std::result::Result<Vec<LayerFile>, String> {
        let config: Config = serde_json::from_str(text).unwrap();
        config.layers(Path::new("/base"))
    }

    #[test]
    fn files_dirs_and_upper() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("overlaybd.sealed"), "").unwrap();
        let text = serde_json::json!({
            "repoBlobUrl": "https://registry.example/v2/x/blobs",
            "lowers": [
                {"file": "/a", "digest": "sha256:00", "size": 5},
                {"dir": dir.path()},
                {"file": "layers/b"},
            ],
            "upper": {"index": "/i", "data": "/d"},
            "resultFile": "/r",
        });
        let layers = parse(&text.to_string()).unwrap();
        let paths: Vec<_> = layers
            .iter()
            .map(|layer| layer.place.path.clone())
            .collect();
        assert_eq!(
            paths,
            [
                PathBuf::from("/a"),
                dir.path().join("overlaybd.sealed"),
                PathBuf::from("/base/layers/b"),
                PathBuf::from("/d")
            ]
        );
        assert_eq!(layers[0].digest.as_deref(), Some("sha256:00"));
        assert_eq!(layers[3].index, Some(PathBuf::from("/i")));
        // A commit counts before a sealed layer.
        std::fs::write(dir.path().join("overlaybd.commit"), "").unwrap();
        let layers = parse(&text.to_string()).unwrap();
        assert_eq!(layers[1].place.path, dir.path().join("overlaybd.commit"));
    }

    #[test]
    fn result_files() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.v1.json");
        for (text, want) in [
            ("{}", None),
            (r#"{"resultFile":""}"#, None),
            (r#"{"resultFile":"/r"}"#, Some(PathBuf::from("/r"))),
            (r#"{"resultFile":"r"}"#, Some(dir.path().join("r"))),
        ] {
            std::fs::write(&config, text).unwrap();
            assert_eq!(result_file(&config).unwrap(), want, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read() {
        for (text, says) in [
            (r#"{"lowers":[{"digest":"sha256:00"}]}"#, "lower 0"),
            (
                r#"{"lowers":[{"dir":"/nonexistent/dir"}]}"#,
                "overlaybd.commit",
            ),
            (
                r#"{"lowers":[{"file":"/a","targetFile":"/t"}]}"#,
                "turboOCI",
            ),
            (
                r#"{"lowers":[{"file":"/a","targetDigest":"x"}]}"#,
                "turboOCI",
            ),
            (
                r#"{"lowers":[],"upper":{"data":"/d","target":"/t"}}"#,
                "turboOCI",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
