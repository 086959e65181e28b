//! Embeds the BPF object named by `HUBLET_BPF_OBJECT` (xtask sets it), or an empty stub, so that check, clippy and
//! docs need no BPF toolchain. A daemon with the stub says so and runs without steering and identity.
use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=HUBLET_BPF_OBJECT");
    let out =
        PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("hublet.bpf.o");
    let object = match env::var_os("HUBLET_BPF_OBJECT").filter(|path| !path.is_empty()) {
        None => Vec::new(),
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo::rerun-if-changed={}", path.display());
            match fs::read(&path) {
                Ok(object) => object,
                Err(error) => {
                    println!(
                        "cargo::error=HUBLET_BPF_OBJECT={}: {error}; `cargo xtask build` makes it",
                        path.display()
                    );
                    return;
                }
            }
        }
    };
    // An unchanged file keeps its time, so that nothing is compiled again.
    if fs::read(&out).is_ok_and(|old| old == object) {
        return;
    }
    if let Err(error) = fs::write(&out, object) {
        println!("cargo::error={}: {error}", out.display());
    }
}
