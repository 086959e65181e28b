//! One request in flight: its target and its caller.

use std::sync::Arc;

use http::Request;
use http::request::Parts;
use hublet_wire::media::Accepts;
use hublet_wire::request::{RequestInfo, Verb};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use super::connection::Connection;
use super::protocol::Protocol;
use crate::authz::attributes::Attributes;
use crate::authz::authorizer::Authorizer;
use crate::authz::identity::Credential;
use crate::budget::Flow;
use crate::local::{LocalRequest, encode_scope};
use crate::telemetry::{CountedBody, Description, RequestRecord};

/// A request whose caller and target are known. Shared with a fetch that outlasts its response.
#[derive(Debug)]
pub(crate) struct Call {
    pub parts: Parts,
    pub request: RequestInfo,
    pub protocol: Protocol,
    pub accepts: Accepts,
    pub caller: Caller,
    /// The store's key, where the request is understood.
    key: Option<Vec<u8>>,
    pub flow: Arc<Flow>,
}

/// The identity that a request is sent with.
#[derive(Debug)]
pub(crate) struct Caller {
    pub credential: Credential,
    pub acceptance: Acceptance,
}

/// The cloud's acceptance of a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acceptance {
    /// The cloud has accepted it before.
    Accepted,
    /// The cloud may reject it.
    Pending,
}

impl Acceptance {
    pub(crate) fn of(credential: &Credential, authorizer: &Authorizer) -> Self {
        if authorizer.has_accepted(credential) {
            Self::Accepted
        } else {
            Self::Pending
        }
    }
}

/// The part of a request that is still to come from its client.
#[derive(Debug)]
pub(crate) struct Inbound {
    pub body: CountedBody<Incoming>,
    /// The client's connection, once it has left HTTP.
    pub upgraded: Option<OnUpgrade>,
}

impl Call {
    /// Reads the target and the credential of a request, whose body is counted for its record.
    pub(crate) fn identify(
        mut request: Request<Incoming>,
        connection: &Connection,
        authorizer: &Authorizer,
        record: &mut RequestRecord,
    ) -> (Self, Inbound) {
        let info = RequestInfo::parse(request.method(), request.uri());
        let protocol = Protocol::of(request.headers(), &info);
        let upgraded = (protocol == Protocol::Upgrade).then(|| hyper::upgrade::on(&mut request));
        let (parts, body) = request.into_parts();
        let credential = connection.credential(&parts.headers);
        let call = Self {
            protocol,
            accepts: Accepts::from_headers(&parts.headers),
            caller: Caller {
                acceptance: Acceptance::of(&credential, authorizer),
                credential,
            },
            key: info.understood().map(encode_scope),
            request: info,
            parts,
            flow: Arc::clone(&connection.flow),
        };
        let body = record.count_body(body);
        (call, Inbound { body, upgraded })
    }

    pub(crate) fn verb(&self) -> Verb {
        self.request.verb()
    }

    /// For the log: the path without its query, which may hold a command's arguments.
    pub(crate) fn description(&self) -> Description {
        Description {
            resource: self.parts.uri.path().to_owned(),
            account: self.caller.credential.account().to_string(),
        }
    }

    pub(crate) fn key(&self) -> Option<&[u8]> {
        self.key.as_deref()
    }

    /// The request to the store, where it is understood.
    pub(crate) fn local_request(&self) -> Option<LocalRequest<'_>> {
        Some(LocalRequest {
            attributes: self.attributes()?,
            headers: &self.parts.headers,
            accepts: self.accepts,
            flow: &self.flow,
        })
    }

    /// The attributes that authorisation depends on, where the request is understood.
    pub(crate) fn attributes(&self) -> Option<Attributes<'_>> {
        Some(Attributes {
            credential: &self.caller.credential,
            request: self.request.understood()?,
            key: self.key()?,
        })
    }

    /// The credential that wrote the object of a response, which is thereby allowed to read it.
    pub(crate) fn author(&self) -> Option<&Credential> {
        let writes = matches!(self.verb(), Verb::Create | Verb::Update | Verb::Patch);
        let request = self.request.understood()?;
        (writes && request.subresource().is_empty()).then_some(&self.caller.credential)
    }
}
