// SPDX-License-Identifier: MIT
//! The machine's own apt sources, to find the mirror that it trusts.
//!
//! Both formats of `sources.list(5)` are read: one entry per line, and deb822
//! stanzas. Nothing here writes below `/etc`.

use crate::error::{
    Error,
    IoContext,
    Result, //
};
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{
    Path,
    PathBuf, //
};

/// One entry of the machine's sources.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Entry {
    types: Vec<String>,
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    /// Key file, fingerprints, or a whole key (lines joined by `\n `).
    signed_by: Option<String>,
    trusted: bool,
}

/// Reads every source below the apt folder `etc` (`/etc/apt`).
pub(crate) fn read(etc: &Path) -> Result<Vec<Entry>> {
    let mut files = vec![etc.join("sources.list")];
    let parts = etc.join("sources.list.d");
    match fs::read_dir(&parts) {
        Ok(dir) => {
            let mut found: Vec<PathBuf> = dir.flatten().map(|entry| entry.path()).collect();
            found.sort();
            files.append(&mut found);
        }
        Err(source) if source.kind() == ErrorKind::NotFound => {}
        Err(source) => return Err(Error::io("read", &parts, &source)),
    }
    let mut entries = Vec::new();
    for file in files {
        let parse = match file.extension().and_then(|ext| ext.to_str()) {
            Some("list") => parse_lines,
            Some("sources") => parse_deb822,
            _ => continue,
        };
        match fs::read(&file) {
            Ok(text) => entries.extend(parse(&String::from_utf8_lossy(&text))),
            Err(source) if source.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(source).at("read", &file),
        }
    }
    Ok(entries)
}

/// The one-line format: `deb [option=value ...] uri suite component ...`.
fn parse_lines(text: &str) -> Vec<Entry> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Entry> {
    let line = line.split('#').next()?.trim();
    let (kind, rest) = line.split_once(char::is_whitespace)?;
    let rest = rest.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let option = |name: &str| {
        options
            .split_whitespace()
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.to_owned())
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Entry {
        types: vec![kind.to_owned()],
        uris: vec![words.next()?],
        suites: vec![words.next()?],
        components: words.collect(),
        signed_by: option("signed-by").map(|keys| keys.replace(',', " ")),
        trusted: option("trusted").is_some_and(|value| is_yes(&value)),
    })
}

/// The deb822 format: stanzas of `Field: value` with continuation lines.
fn parse_deb822(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut fields: BTreeMap<String, String> = BTreeMap::new();
    let mut last = String::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            entries.extend(stanza(&fields));
            fields.clear();
            last.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some(value) = fields.get_mut(&last) {
                value.push_str("\n ");
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            last = name.trim().to_ascii_lowercase();
            fields.insert(last.clone(), value.trim().to_owned());
        }
    }
    entries
}

fn stanza(fields: &BTreeMap<String, String>) -> Option<Entry> {
    let words = |name: &str| -> Vec<String> {
        let value = fields.get(name).map_or("", String::as_str);
        value.split_whitespace().map(str::to_owned).collect()
    };
    if fields.get("enabled").is_some_and(|value| !is_yes(value)) {
        return None;
    }
    let entry = Entry {
        types: words("types"),
        uris: words("uris"),
        suites: words("suites"),
        components: words("components"),
        signed_by: fields.get("signed-by").cloned(),
        trusted: fields.get("trusted").is_some_and(|value| is_yes(value)),
    };
    (!entry.types.is_empty() && !entry.uris.is_empty()).then_some(entry)
}

/// apt's words for true.
fn is_yes(value: &str) -> bool {
    ["yes", "true", "1", "on", "enable", "with"]
        .iter()
        .any(|yes| value.eq_ignore_ascii_case(yes))
}

/// The entry for the main archive of the release called `codename`.
///
/// Other vendors use the same suite and component names, so the likeliest
/// entry wins: Debian's keyring counts most, then an address ending in
/// `/debian`, then the release's own name instead of an alias.
pub(crate) fn main_archive<'a>(entries: &'a [Entry], codename: &str) -> Option<&'a Entry> {
    const ALIASES: [&str; 5] = ["stable", "oldstable", "testing", "unstable", "sid"];
    let score = |entry: &Entry| -> Option<u32> {
        let has = |list: &[String], word: &str| {
            list.iter()
                .any(|item| item.trim_end_matches('/').eq_ignore_ascii_case(word))
        };
        let named = has(&entry.suites, codename);
        let aliased = ALIASES.iter().any(|alias| has(&entry.suites, alias));
        if !(named || aliased) || !has(&entry.types, "deb") || !has(&entry.components, "main") {
            return None;
        }
        let keyring = entry
            .signed_by
            .as_ref()
            .is_some_and(|key| key.contains("debian-archive"));
        let address = entry.uris.iter().any(|uri| {
            let uri = uri.trim_end_matches('/');
            uri.strip_suffix(".list")
                .unwrap_or(uri)
                .ends_with("/debian")
        });
        Some(u32::from(keyring) * 4 + u32::from(address) * 2 + u32::from(named))
    };
    let mut best: Option<(u32, &Entry)> = None;
    for entry in entries {
        let Some(score) = score(entry) else { continue };
        // Of equals the first wins, as with apt itself.
        if best.is_none_or(|(other, _)| score > other) {
            best = Some((score, entry));
        }
    }
    best.map(|(_, entry)| entry)
}

impl Entry {
    /// Where this entry's mirrors have `file`, a path below `pool/`; none for
    /// lists of mirrors, which only apt can follow.
    pub(crate) fn addresses_of(&self, file: &str) -> Vec<String> {
        let plain = |uri: &&String| !uri.starts_with("mirror");
        self.uris
            .iter()
            .filter(plain)
            .map(|uri| format!("{}/{file}", uri.trim_end_matches('/')))
            .collect()
    }

    /// A deb822 stanza for `suite` on this entry's mirrors, trusted as they are.
    pub(crate) fn stanza_for(&self, suite: &str) -> String {
        let mut text = format!(
            "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n",
            self.uris.join(" ")
        );
        if let Some(key) = &self.signed_by {
            text.push_str(&format!("Signed-By: {key}\n"));
        }
        if self.trusted {
            text.push_str("Trusted: yes\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "\
# deb http://old.example/debian bookworm main
deb [arch=amd64 signed-by=/k/vendor.gpg] https://vendor.example/repo bookworm main # tools
deb-src http://mirror.example/debian bookworm main
deb http://mirror.example/debian/ bookworm main contrib
deb http://mirror.example/debian-security bookworm-security main
deb [broken
deb
";

    const DEB822: &str = "\
Types: deb
# http://snapshot.example/
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

types: deb deb-src
uris: http://one.example/x
 http://two.example/x
suites: other
components: main
signed-by:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc=
 -----END PGP PUBLIC KEY BLOCK-----
";

    #[test]
    fn test_parse_lines_with_comments_and_junk_keeps_whole_entries() {
        let entries = parse_lines(LINES);
        assert_eq!(entries.len(), 4, "{entries:?}");
        assert_eq!(entries[0].signed_by.as_deref(), Some("/k/vendor.gpg"));
        assert_eq!(entries[2].components, ["main", "contrib"]);
    }

    #[test]
    fn test_main_archive_prefers_the_archive_over_a_vendor() {
        let entries = parse_lines(LINES);
        let entry = main_archive(&entries, "bookworm").unwrap();
        assert_eq!(entry.uris, ["http://mirror.example/debian/"]);
    }

    #[test]
    fn test_main_archive_of_another_release_returns_none() {
        assert_eq!(main_archive(&parse_lines(LINES), "trixie"), None);
    }

    #[test]
    fn test_main_archive_alias_suite_is_found() {
        let entries = parse_lines(
            "deb http://vendor.example/chrome stable main\n\
             deb http://mirror.example/debian stable main\n",
        );
        let entry = main_archive(&entries, "trixie").unwrap();
        assert_eq!(entry.uris, ["http://mirror.example/debian"]);
    }

    #[test]
    fn test_parse_deb822_skips_disabled_and_keeps_inline_keys() {
        let entries = parse_deb822(DEB822);
        assert_eq!(entries.len(), 2, "{entries:?}");
        assert_eq!(entries[0].suites, ["bookworm", "bookworm-updates"]);
        assert_eq!(entries[1].uris.len(), 2);
        let stanza = entries[1].stanza_for("later");
        assert!(stanza.contains("Suites: later\n"), "{stanza}");
        // Every line of the key stays a continuation line.
        assert!(stanza.contains("\n .\n abc=\n -----END"), "{stanza}");
    }

    #[test]
    fn test_stanza_for_carries_the_key_file() {
        let entries = parse_deb822(DEB822);
        let entry = main_archive(&entries, "bookworm").unwrap();
        assert_eq!(
            entry.stanza_for("trixie-backports"),
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: trixie-backports\n\
             Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        );
    }

    #[test]
    fn test_addresses_of_joins_and_leaves_mirror_lists() {
        let entries =
            parse_lines("deb http://mirror.example/debian/ x main\ndeb mirror+file:/l x main\n");
        assert_eq!(
            entries[0].addresses_of("pool/a.tar"),
            ["http://mirror.example/debian/pool/a.tar"]
        );
        assert!(entries[1].addresses_of("pool/a.tar").is_empty());
    }

    #[test]
    fn test_read_missing_folder_returns_nothing() {
        assert_eq!(read(Path::new("/nonexistent/apt")).unwrap(), []);
    }
}
