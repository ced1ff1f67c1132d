// SPDX-License-Identifier: MIT

//! With the feature `spdk`: compiles the NVMe driver of SPDK 20.07, and the shim to
//! it, out of the tree that `OBD_SPDK_SOURCE` names. Without DPDK: what SPDK asks of
//! its environment is in `src/spdk/env.rs`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "spdk")]
    spdk::build();
}

#[cfg(feature = "spdk")]
mod spdk {
    use std::fs;
    use std::path::{
        Path,
        PathBuf, //
    };

    /// Names the tree.
    const SOURCE: &str = "OBD_SPDK_SOURCE";

    const SHIM: &str = "src/spdk/shim.c";

    /// The driver, with all that its parts need of each other.
    const FILES: [&str; 22] = [
        "lib/log/log.c",
        "lib/log/log_flags.c",
        "lib/nvme/nvme.c",
        "lib/nvme/nvme_ctrlr.c",
        "lib/nvme/nvme_ctrlr_cmd.c",
        "lib/nvme/nvme_ctrlr_ocssd_cmd.c",
        "lib/nvme/nvme_fabric.c",
        "lib/nvme/nvme_io_msg.c",
        "lib/nvme/nvme_ns.c",
        "lib/nvme/nvme_ns_cmd.c",
        "lib/nvme/nvme_ns_ocssd_cmd.c",
        "lib/nvme/nvme_opal.c",
        "lib/nvme/nvme_pcie.c",
        "lib/nvme/nvme_poll_group.c",
        "lib/nvme/nvme_qpair.c",
        "lib/nvme/nvme_quirks.c",
        "lib/nvme/nvme_transport.c",
        "lib/nvme/nvme_uevent.c",
        "lib/util/bit_array.c",
        "lib/util/math.c",
        "lib/util/strerror_tls.c",
        "lib/util/string.c",
    ];

    pub(super) fn build() {
        println!("cargo::rerun-if-env-changed={SOURCE}");
        println!("cargo::rerun-if-changed={SHIM}");
        if let Err(reason) = compile() {
            println!("cargo::error=feature spdk: {reason}");
        }
    }

    fn compile() -> Result<(), String> {
        let source = std::env::var_os(SOURCE).map(PathBuf::from);
        let source = source.filter(|dir| dir.join(FILES[0]).is_file()).ok_or(
            "OBD_SPDK_SOURCE names no tree of SPDK 20.07; `cargo aios setup --spdk` gets one",
        )?;
        let out = std::env::var_os("OUT_DIR")
            .map(PathBuf::from)
            .ok_or("no OUT_DIR")?;
        // SPDK's configure writes one; every option of it is off.
        let include = out.join("include");
        fs::create_dir_all(include.join("spdk"))
            .and_then(|()| fs::write(include.join("spdk/config.h"), ""))
            .map_err(|error| format!("cannot write config.h: {error}"))?;
        let mut build = cc::Build::new();
        build
            .files(FILES.iter().map(|file| source.join(file)))
            .file(SHIM)
            .include(&include)
            .include(source.join("include"))
            .define("_GNU_SOURCE", None)
            .std("gnu99")
            .opt_level(2)
            .flag("-fno-strict-aliasing")
            .flag("-fno-common")
            .warnings(false)
            .extra_warnings(false)
            // Printed below.
            .cargo_metadata(false)
            .try_compile("obd_spdk")
            .map_err(|error| one_line(&error.to_string()))?;
        link(&out);
        Ok(())
    }

    /// SPDK's transports register themselves by constructors, which nobody calls: so
    /// every object is linked.
    fn link(out: &Path) {
        println!("cargo::rustc-link-search=native={}", out.display());
        println!("cargo::rustc-link-lib=static:+whole-archive,-bundle=obd_spdk");
    }

    fn one_line(text: &str) -> String {
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}
