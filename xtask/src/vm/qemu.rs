//! Runs a virtual machine under QEMU to its end: powered off, over its time limit, or crashed. QEMU translates (TCG)
//! even where there is KVM, so that it is the same machine everywhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::kernel::Kernel;
use crate::child::Child;
use crate::interrupt::Interrupt;
use crate::project::Project;
use crate::test::suite;

/// Two, for hublet works otherwise on one.
const PROCESSORS: &str = "2";
const MEMORY: &str = "2G";
/// Lines of a log that are shown when a machine dies.
const TAIL: usize = 20;
/// Begins the console line of a kernel panic.
const PANIC: &str = "Kernel panic - not syncing";

/// Names of QEMU and of devices.
#[derive(Debug)]
pub(super) struct Board {
    /// QEMU's program.
    pub(super) qemu: &'static str,
    machine: &'static str,
    processor: &'static str,
    console: &'static str,
    /// A serial port besides the console's.
    port: &'static str,
    /// The same in the machine: the suites print there.
    pub(super) results: &'static str,
}

/// An ordinary PC with two serial ports.
pub(super) const X86_64: Board = Board {
    qemu: "qemu-system-x86_64",
    machine: "q35",
    processor: "max",
    console: "ttyS0",
    port: "isa-serial",
    results: "/dev/ttyS1",
};

/// QEMU's own board, with the processor of a Raspberry Pi 4.
pub(super) const AARCH64: Board = Board {
    qemu: "qemu-system-aarch64",
    machine: "virt",
    processor: "cortex-a72",
    console: "ttyAMA0",
    port: "pci-serial",
    results: "/dev/ttyS0",
};

/// A virtual machine to boot.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    pub(super) board: &'a Board,
    pub(super) kernel: &'a Kernel,
    pub(super) initramfs: &'a Path,
    /// Its logs go here.
    pub(super) dir: &'a Path,
}

/// The end of a virtual machine.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// QEMU ended by itself: switched off, or the kernel panicked.
    Gone,
    /// The limit came first.
    TooLong,
}

impl Machine<'_> {
    /// Output of the suites.
    pub(super) fn suites_log(&self) -> PathBuf {
        self.dir.join("suites.log")
    }

    /// Output of the kernel.
    pub(super) fn console_log(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// Boots it and passes the suites' lines on until it ends.
    pub(super) fn run(
        &self,
        project: &Project,
        limit: Duration,
        interrupt: &Interrupt,
        mut hear: impl FnMut(&str),
    ) -> Result<End> {
        let begin = Instant::now();
        let (child, output) = Child::start_piped(
            "qemu",
            &self.command(project),
            &self.dir.join("qemu.log"),
            Duration::from_secs(5),
        )?;
        let lines = suite::read_lines(output, fs::File::create(self.suites_log())?);
        let end = loop {
            match lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => hear(&line),
                Err(RecvTimeoutError::Disconnected) => break End::Gone,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if interrupt.wait(Duration::ZERO) {
                bail!("interrupted");
            }
            if begin.elapsed() > limit {
                break End::TooLong;
            }
        };
        drop(child);
        // A test that hangs has its name in a line without an end.
        lines.iter().for_each(|line| hear(&line));
        Ok(end)
    }

    fn command(&self, project: &Project) -> Command {
        let Board {
            qemu,
            machine,
            processor,
            console,
            port,
            ..
        } = self.board;
        let mut command = project.command(qemu);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
        command.args(["-display", "none"]);
        // One thread for both processors. With a thread each, QEMU 7.2 may go on running its old translation of code that
        // the other processor has patched: the kernel then loops for ever in connect(), where attaching to a cgroup flips
        // a static key.
        command.args(["-accel", "tcg,thread=single"]);
        command.args(["-machine", machine, "-cpu", processor]);
        command.args(["-smp", PROCESSORS, "-m", MEMORY]);
        command
            .arg("-kernel")
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(self.initramfs);
        // A panic ends QEMU at once (with -no-reboot). An oops and a processor that hangs for a minute become panics.
        let words = &self.kernel.words;
        let append = format!(
            "console={console} panic=-1 oops=panic softlockup_panic=1 watchdog_thresh=30 {words}"
        );
        command.args(["-append", &append]);
        command
            .arg("-serial")
            .arg(format!("file:{}", self.console_log().display()));
        command
            .args(["-chardev", "stdio,id=results,signal=off", "-device"])
            .arg(format!("{port},chardev=results"));
        command
    }

    /// The kernel's panic message, if its console has one.
    pub(super) fn panic_message(&self) -> Option<String> {
        let console = read_log(&self.console_log());
        console
            .lines()
            .find(|line| line.contains(PANIC))
            .map(|line| line.trim_end().to_owned())
    }

    /// Lines for diagnosis: the console's up to a panic, or the last ones of both logs.
    pub(super) fn diagnostic_lines(&self) -> String {
        let mut words = String::new();
        for log in [self.console_log(), self.suites_log()] {
            let text = read_log(&log);
            let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
            let panic = lines.iter().position(|line| line.contains(PANIC));
            let until = panic.map_or(lines.len(), |at| at + 1);
            let tail = lines[until.saturating_sub(TAIL)..until].join("\n");
            words.push_str(&format!("--- end of {} ---\n{tail}\n", log.display()));
        }
        words
    }
}

fn read_log(log: &Path) -> String {
    String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned()
}
