//! Builds every stage, in the order of [`super`]; [`build_proxy`] those that a request passes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use rustls::{RootCertStore, ServerConfig};
use time::OffsetDateTime;
use tracing::warn;

use super::bind::{Sockets, inherit_or_bind};
use super::build::build_proxy;
use super::handover::Inheritance;
use super::tasks::Tasks;
use super::{AppError, Bound, limits, startup_log};
use crate::admin::{Admin, Condition, Handles, State};
use crate::certs::{Certificates, cloud_roots};
use crate::config::{Checked, Config};
use crate::drain::Owner;
use crate::listen::{self, Acceptor, ConnectionTable, Counters, ListenError, Purpose};
use crate::node::dir_locks::DirectoryLocks;
use crate::proxy::Proxy;
use crate::steer::Setup;

/// Interval between checks of the serving certificate.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(600);

impl Bound {
    /// Builds every stage, up to accepting connections. Call on the traffic runtime.
    ///
    /// # Errors
    /// The first stage that can't be built; the setup of the node is undone.
    pub async fn build(checked: Checked) -> Result<Self, AppError> {
        let Checked {
            mut config,
            warnings,
        } = checked;
        let roots = cloud_roots(&config.certs)?;
        add_node_address(&mut config);
        // Anything that can fail fails while the old daemon still runs.
        let early_certificates = match config.take_over {
            true => Some(open_certificates(&config)?),
            false => None,
        };
        let mut inheritance = match config.take_over {
            true => Inheritance::request(&config.certs.root_dir)?,
            false => Inheritance::default(),
        };

        let state = State::new(config.node_name.clone());
        let admin_socket = inherit_or_bind(config.admin, Purpose::Admin, &mut inheritance)?;
        let admin = start_admin(&admin_socket, &state)?;
        let certificates = match early_certificates {
            Some(certificates) => certificates,
            None => open_certificates(&config)?,
        };
        let dummy = config.setup.dummy.as_ref().map(|dummy| dummy.ip);
        let mut sockets = Sockets::bind_host(&config.listen, dummy, &mut inheritance)?;
        let inherited = std::mem::take(&mut inheritance.setup);
        let setup = Setup::take_over(&config.setup, config.cloud.mark, inherited).await?;
        let serving = match sockets.bind_interface(&config.listen, &setup, &mut inheritance) {
            Ok(()) => Serving::build(&config, &certificates, &roots),
            Err(error) => Err(error.into()),
        };
        let Serving { proxy, tls } = match serving {
            Ok(serving) => serving,
            Err(error) => {
                setup.undo().await;
                return Err(error);
            }
        };
        state.mark(Condition::Store);

        let setup = Owner::new(setup);
        let table = ConnectionTable::new(
            limits::max_connections(config.listen.max_connections),
            config.listen.reader_timeout,
        );
        let counters = Arc::new(Counters::default());
        let acceptor = Acceptor::new(
            Arc::clone(&proxy),
            setup.share(),
            tls,
            Arc::clone(&table),
            Arc::clone(&counters),
        );
        state.attach(Handles {
            proxy: Arc::clone(&proxy),
            setup: setup.share(),
            certificates: Arc::clone(&certificates),
            table: Arc::clone(&table),
            counters: Arc::clone(&counters),
            listeners: startup_log::describe_listeners(&sockets, admin.address()),
            warnings,
        });
        admin
            .runtime()
            .spawn(renew_certificate(Arc::clone(&certificates)));
        Ok(Self {
            _dir_locks: DirectoryLocks::lock_shared([&config.certs.root_dir, &config.cache.dir]),
            config,
            admin,
            state,
            setup,
            proxy,
            acceptor,
            certificates,
            table,
            counters,
            sockets,
            admin_socket,
            inheritance,
            tasks: Tasks::default(),
        })
    }
}

/// The stages whose failure undoes the setup of the node.
struct Serving {
    proxy: Arc<Proxy>,
    tls: Arc<ServerConfig>,
}

impl Serving {
    fn build(
        config: &Config,
        certificates: &Certificates,
        roots: &Arc<RootCertStore>,
    ) -> Result<Self, AppError> {
        let tls = listen::server_config(certificates.resolver()).map_err(ListenError::from)?;
        let proxy = build_proxy(config, roots)?;
        Ok(Self { proxy, tls })
    }
}

fn start_admin(socket: &TcpListener, state: &Arc<State>) -> Result<Admin, AppError> {
    socket
        .try_clone()
        .and_then(|socket| Admin::start(socket, Arc::clone(state)))
        .map_err(|error| AppError::System("can't start the admin thread", error))
}

fn open_certificates(config: &Config) -> Result<Arc<Certificates>, AppError> {
    let now = OffsetDateTime::now_utc();
    Ok(Arc::new(Certificates::open(
        &config.certs,
        &config.node_name,
        now,
    )?))
}

/// Runs on the admin runtime: generating a key takes too long for a traffic worker.
async fn renew_certificate(certificates: Arc<Certificates>) {
    loop {
        tokio::time::sleep(CERTIFICATE_CHECK).await;
        if let Err(error) = certificates.refresh(OffsetDateTime::now_utc()) {
            warn!("can't renew the serving certificate: {error}");
        }
    }
}

/// Adds the node's address to the serving certificate if `--node-ip` isn't given.
fn add_node_address(config: &mut Config) {
    if config.certs.node_ip.is_some() {
        return;
    }
    let server = config.cloud.servers.first();
    let ip = server.and_then(|server| source_address(&server.host, server.port));
    if let Some(ip) = ip
        && !config.certs.ip_sans.contains(&ip)
    {
        config.certs.ip_sans.push(ip);
    }
}

/// The source address that the kernel chooses towards a server. Connecting a UDP socket sends
/// nothing. DNS names aren't resolved: that could hold up the start.
fn source_address(host: &str, port: u16) -> Option<IpAddr> {
    let server: IpAddr = host.parse().ok()?;
    let unspecified: IpAddr = match server {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((unspecified, 0)).ok()?;
    socket.connect((server, port)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_address_is_the_routes() {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert_eq!(source_address("127.0.0.1", 6443), Some(loopback));
        assert_eq!(source_address("api.example.com", 6443), None, "no DNS");
    }
}
