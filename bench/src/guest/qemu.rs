// SPDX-License-Identifier: MIT
//! The QEMU command line of a guest.

use super::{
    Backend,
    BootConfig,
    Drive,
    Iommu, //
};
use crate::error::{
    Error,
    Result, //
};
use crate::process::Tool;
use aios_guest::{
    DRIVE_SERIAL,
    HOST_ROOT_TAG,
    PORT_NAME, //
};
use std::ffi::OsString;
use std::os::unix::ffi::{
    OsStrExt,
    OsStringExt, //
};
use std::path::{
    Path,
    PathBuf, //
};

/// The program.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";

/// CPUs that the kernel configurations here know (`CONFIG_NR_CPUS`).
const MAX_CPUS: u32 = 16;

/// Below this the kernel and its initramfs do not fit, in MiB.
const MIN_MEMORY_MIB: u32 = 128;

/// I/O queue pairs for which QEMU's NVMe has interrupt vectors by default.
const MAX_QUEUES: u32 = 64;

/// Largest useful `mdts`: 4 KiB << 20 is 4 GiB.
const MAX_MDTS: u8 = 20;

/// Kernel command line of every guest: fixed addresses for profiles, every
/// message on the console with its time, and no reboot after a panic but the
/// end of QEMU. On a busy machine an emulated timer may miss the kernel's test
/// of it, which is a panic where interrupts are remapped: no such test. Programs
/// start at the same addresses too, or QEMU before 8.0 translates all of their
/// code at each start, which makes short ones four times slower.
const KERNEL: &[&str] = &[
    "console=ttyS0",
    "loglevel=7",
    "printk.time=1",
    "nokaslr",
    "norandmaps",
    "oops=panic",
    "panic=-1",
    "no_timer_check",
];

/// What runs the guest's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machine {
    /// QEMU's own translator, one thread per CPU.
    Tcg,
    /// The same in virtual time.
    VirtualTime,
    /// The host's CPU.
    Kvm,
}

/// Where the guest's serial console goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Console {
    /// To the log alone.
    Log,
    /// To the terminal and the log.
    Terminal,
}

/// Files that QEMU makes, opens or listens on.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    /// The initramfs.
    pub(crate) initramfs: PathBuf,
    /// The console's log.
    pub(crate) log: PathBuf,
    /// Socket of the agent's port.
    pub(crate) agent: PathBuf,
    /// Socket of the monitor.
    pub(crate) qmp: PathBuf,
}

/// The command line for `config`, which [`check`] has to let pass.
pub(crate) fn tool(
    config: &BootConfig,
    machine: Machine,
    console: Console,
    files: &Files,
) -> Result<Tool> {
    check(config)?;
    let mut tool = Tool::new(PROGRAM).args(["-nodefaults", "-no-user-config"]);
    tool = match machine {
        Machine::Tcg => tool.args([
            "-accel",
            "tcg,thread=multi",
            "-machine",
            "q35",
            "-cpu",
            "max",
        ]),
        // 2 to the power of 0 nanoseconds per instruction; an idle CPU's clock
        // jumps to its next timer.
        Machine::VirtualTime => tool
            .args([
                "-accel",
                "tcg,thread=single",
                "-icount",
                "shift=0,sleep=off",
            ])
            .args(["-machine", "q35", "-cpu", "max"]),
        // Interrupt remapping wants the I/O APIC in QEMU.
        Machine::Kvm => tool
            .args(["-accel", "kvm,kernel-irqchip=split", "-machine", "q35"])
            .args(["-cpu", "host"]),
    };
    tool = tool
        .args(["-smp", &config.cpus.to_string()])
        .args(["-m", &format!("{}M", config.memory_mib)])
        .args(["-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(&config.kernel)
        .arg("-initrd")
        .arg(&files.initramfs)
        .args(["-append", &kernel_line(config)]);
    // Before the devices that it translates for.
    if config.iommu != Iommu::Off {
        // Four levels of page tables, as real machines have; old versions of
        // QEMU make three unless told, and mapping costs less.
        tool = tool.args(["-device", "intel-iommu,intremap=on,aw-bits=48"]);
    }
    tool = match console {
        Console::Log => tool
            .arg("-chardev")
            .arg(option("file,id=console,path=", &files.log, ""))
            .args(["-serial", "chardev:console"]),
        // Shared with the monitor, so that Ctrl-A X ends a guest that hangs.
        Console::Terminal => tool
            .arg("-chardev")
            .arg(option(
                "stdio,id=console,mux=on,signal=off,logfile=",
                &files.log,
                "",
            ))
            .args(["-serial", "chardev:console"])
            .args(["-mon", "chardev=console,mode=readline"]),
    };
    tool = tool
        .arg("-chardev")
        .arg(option(
            "socket,id=qmp,path=",
            &files.qmp,
            ",server=on,wait=off",
        ))
        .args(["-mon", "chardev=qmp,mode=control"])
        .arg("-chardev")
        .arg(option(
            "socket,id=agent,path=",
            &files.agent,
            ",server=on,wait=off",
        ))
        .args(["-device", "virtio-serial-pci"])
        .arg("-device")
        .arg(format!("virtserialport,chardev=agent,name={PORT_NAME}"))
        .arg("-fsdev")
        .arg("local,id=root,path=/,security_model=none,readonly=on,multidevs=remap")
        .arg("-device")
        .arg(format!(
            "virtio-9p-pci,fsdev=root,mount_tag={HOST_ROOT_TAG}"
        ));
    for (index, drive) in config.drives.iter().enumerate() {
        tool = tool
            .arg("-blockdev")
            .arg(blockdev(index, &drive.backend))
            .arg("-device")
            .arg(format!(
                "nvme,serial={DRIVE_SERIAL}{index},drive=drive{index},max_ioqpairs={},mdts={},\
                 logical_block_size={lba},physical_block_size={lba}",
                drive.queues,
                drive.mdts,
                lba = drive.lba,
            ));
    }
    Ok(tool.args(&config.qemu))
}

fn kernel_line(config: &BootConfig) -> String {
    let iommu: &[&str] = match config.iommu {
        Iommu::Lazy => &["intel_iommu=on", "iommu.passthrough=0", "iommu.strict=0"],
        Iommu::Strict => &["intel_iommu=on", "iommu.passthrough=0", "iommu.strict=1"],
        Iommu::Off => &["intel_iommu=off"],
    };
    let mut words: Vec<&str> = KERNEL.iter().chain(iommu).copied().collect();
    words.extend(config.append.iter().map(String::as_str));
    words.join(" ")
}

fn blockdev(index: usize, backend: &Backend) -> OsString {
    match backend {
        // Through the host's page cache, as not every file system can do
        // without; the guest's flushes reach the host's drive.
        Backend::File(path) => option(
            &format!("driver=raw,node-name=drive{index},discard=unmap,file.driver=file,file.filename="),
            path,
            "",
        ),
        Backend::Nbd(socket) => option(
            &format!("driver=nbd,node-name=drive{index},discard=unmap,server.type=unix,server.path="),
            socket,
            "",
        ),
        Backend::Null { size, latency_ns } => format!(
            "driver=null-co,node-name=drive{index},size={size},latency-ns={latency_ns},read-zeroes=on"
        )
        .into(),
    }
}

/// `before`, `path` and `after` as one QEMU option; commas in the path are
/// doubled, as QEMU wants it.
fn option(before: &str, path: &Path, after: &str) -> OsString {
    let mut bytes = before.as_bytes().to_vec();
    for &byte in path.as_os_str().as_bytes() {
        bytes.push(byte);
        if byte == b',' {
            bytes.push(byte);
        }
    }
    bytes.extend(after.bytes());
    OsString::from_vec(bytes)
}

/// Fails when `config` asks for what QEMU or the guest cannot do.
pub(crate) fn check(config: &BootConfig) -> Result<()> {
    if !(1..=MAX_CPUS).contains(&config.cpus) {
        return Err(
            Error::new(format!("a guest cannot have {} CPUs", config.cpus))
                .hint(format!("choose 1 to {MAX_CPUS}")),
        );
    }
    if config.memory_mib < MIN_MEMORY_MIB {
        return Err(Error::new(format!(
            "{} MiB of memory are too few for a guest",
            config.memory_mib
        ))
        .hint(format!("give it at least {MIN_MEMORY_MIB}")));
    }
    config.drives.iter().try_for_each(check_drive)
}

fn check_drive(drive: &Drive) -> Result<()> {
    if !(1..=MAX_QUEUES).contains(&drive.queues) {
        return Err(Error::new(format!(
            "a drive cannot have {} I/O queue pairs",
            drive.queues
        ))
        .hint(format!("choose 1 to {MAX_QUEUES}")));
    }
    if drive.mdts > MAX_MDTS {
        return Err(
            Error::new(format!("mdts {} is out of range", drive.mdts)).hint(format!(
                "choose 0 (no limit) to {MAX_MDTS} (as power of two, in pages of 4 KiB)"
            )),
        );
    }
    if ![512, 4096].contains(&drive.lba) {
        return Err(
            Error::new(format!("a drive cannot have blocks of {} bytes", drive.lba))
                .hint("choose 512 or 4096"),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> Files {
        Files {
            initramfs: "/c/initramfs.cpio".into(),
            log: "/o/native.log".into(),
            agent: "/t/a".into(),
            qmp: "/t/q".into(),
        }
    }

    fn config() -> BootConfig {
        BootConfig::new("/k/bzImage", "native", "/o")
    }

    fn line(config: &BootConfig, machine: Machine, console: Console) -> String {
        tool(config, machine, console, &files()).unwrap().line()
    }

    #[test]
    fn test_tool_without_drives_gives_this_line() {
        assert_eq!(
            line(&config(), Machine::Tcg, Console::Log),
            "qemu-system-x86_64 -nodefaults -no-user-config -accel tcg,thread=multi -machine q35 \
             -cpu max -smp 1 -m 1024M -display none -no-reboot -kernel /k/bzImage \
             -initrd /c/initramfs.cpio -append 'console=ttyS0 loglevel=7 printk.time=1 nokaslr \
             norandmaps oops=panic panic=-1 no_timer_check intel_iommu=on iommu.passthrough=0 iommu.strict=0' \
             -device intel-iommu,intremap=on,aw-bits=48 -chardev file,id=console,path=/o/native.log \
             -serial chardev:console -chardev socket,id=qmp,path=/t/q,server=on,wait=off \
             -mon chardev=qmp,mode=control -chardev socket,id=agent,path=/t/a,server=on,wait=off \
             -device virtio-serial-pci -device virtserialport,chardev=agent,name=aios.agent \
             -fsdev local,id=root,path=/,security_model=none,readonly=on,multidevs=remap \
             -device virtio-9p-pci,fsdev=root,mount_tag=hostroot"
        );
    }

    #[test]
    fn test_tool_drives_follow_in_order() {
        let mut config = config();
        let drive = Drive::new(Backend::File("/i/a,b.img".into()));
        config.drives = vec![
            Drive {
                queues: 1,
                mdts: 5,
                lba: 4096,
                ..drive
            },
            Drive::new(Backend::Nbd("/n/s".into())),
            Drive::new(Backend::Null {
                size: 1 << 30,
                latency_ns: 9,
            }),
        ];
        config.qemu = vec!["-plugin".into(), "/p.so".into()];
        let line = line(&config, Machine::Tcg, Console::Log);
        let tail = line.split_once("mount_tag=hostroot ").unwrap().1;
        assert_eq!(
            tail,
            "-blockdev driver=raw,node-name=drive0,discard=unmap,file.driver=file,file.filename=/i/a,,b.img \
             -device nvme,serial=aios0,drive=drive0,max_ioqpairs=1,mdts=5,logical_block_size=4096,physical_block_size=4096 \
             -blockdev driver=nbd,node-name=drive1,discard=unmap,server.type=unix,server.path=/n/s \
             -device nvme,serial=aios1,drive=drive1,max_ioqpairs=64,mdts=7,logical_block_size=512,physical_block_size=512 \
             -blockdev driver=null-co,node-name=drive2,size=1073741824,latency-ns=9,read-zeroes=on \
             -device nvme,serial=aios2,drive=drive2,max_ioqpairs=64,mdts=7,logical_block_size=512,physical_block_size=512 \
             -plugin /p.so"
        );
    }

    #[test]
    fn test_tool_iommu_modes_differ_in_device_and_kernel_line() {
        let mut config = config();
        config.iommu = Iommu::Strict;
        assert!(line(&config, Machine::Tcg, Console::Log).contains("iommu.strict=1"));
        config.iommu = Iommu::Off;
        let off = line(&config, Machine::Tcg, Console::Log);
        assert!(off.contains("intel_iommu=off") && !off.contains("-device intel-iommu"));
    }

    #[test]
    fn test_tool_kvm_and_terminal() {
        let line = line(&config(), Machine::Kvm, Console::Terminal);
        assert!(line.contains("-accel kvm,kernel-irqchip=split -machine q35 -cpu host"));
        assert!(line.contains("stdio,id=console,mux=on,signal=off,logfile=/o/native.log"));
    }

    #[test]
    fn test_tool_virtual_time_counts_instructions() {
        let line = line(&config(), Machine::VirtualTime, Console::Log);
        assert!(line.contains("-accel tcg,thread=single -icount shift=0,sleep=off -machine q35"));
    }

    #[test]
    fn test_tool_impossible_config_returns_error() {
        let mut bad: Vec<BootConfig> = [0, 17].map(|cpus| BootConfig { cpus, ..config() }).into();
        bad.push(BootConfig {
            memory_mib: 64,
            ..config()
        });
        let good = Drive::new(Backend::Null {
            size: 1,
            latency_ns: 0,
        });
        for drive in [
            Drive {
                queues: 0,
                ..good.clone()
            },
            Drive {
                mdts: 21,
                ..good.clone()
            },
            Drive { lba: 520, ..good },
        ] {
            bad.push(BootConfig {
                drives: vec![drive],
                ..config()
            });
        }
        for config in bad {
            assert!(tool(&config, Machine::Tcg, Console::Log, &files()).is_err());
        }
    }
}
