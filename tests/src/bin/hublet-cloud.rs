//! `hublet-cloud`: a cloud to try hublet against, behind the fault proxy. Its files are described in `hublet_tests::dev`.
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use hublet_tests::dev::{self, Settings};

/// A cloud to try hublet against: TLS, tokens, Calico's objects; a control port cuts, slows and mends its link.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    cloud: Cloud,
}

#[derive(Subcommand)]
enum Cloud {
    /// The scriptable cloud: small, in this process; its control port also makes it fail.
    Scripted(Where),
    /// The real kube-apiserver with etcd and controller manager; built with Go at the first start (5 minutes).
    Kube(Where),
}

#[derive(Args)]
struct Where {
    /// Folder for cloud-ca.crt, token, admin.token, bootstrap.kubeconfig, cloud.kubeconfig and control.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Port on 127.0.0.1 that hublet dials; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Address of the control port.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDR:PORT")]
    control: SocketAddr,
    /// End when standard input closes.
    #[arg(long)]
    until_stdin_closes: bool,
}

impl From<Where> for Settings {
    fn from(place: Where) -> Settings {
        let Where {
            dir,
            port,
            control,
            until_stdin_closes,
        } = place;
        Settings {
            folder: dir,
            listen: SocketAddr::from(([127, 0, 0, 1], port)),
            control,
            until_stdin_closes,
        }
    }
}

fn main() -> ExitCode {
    let ended = match Arguments::parse().cloud {
        Cloud::Scripted(place) => dev::run_scripted(&place.into()),
        Cloud::Kube(place) => hublet_tests::kube::dev::run(&place.into()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("hublet-cloud: {cause:#}");
            ExitCode::FAILURE
        }
    }
}
