//! Authentication by bearer token or client certificate, and authorization by rules. A request that no rule allows gets 403.
use parking_lot::RwLock;

use super::request::{Resource, Target};
use super::status::Failure;
use crate::pki;

/// An authenticated user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Name, e.g. `system:serviceaccount:kube-system:calico-cni-plugin`.
    pub name: String,
    pub groups: Vec<String>,
}

impl User {
    /// A user in these groups, and authenticated.
    #[must_use]
    pub fn new(name: &str, groups: &[&str]) -> User {
        let groups = groups
            .iter()
            .copied()
            .chain(["system:authenticated"])
            .map(str::to_owned)
            .collect();
        User {
            name: name.to_owned(),
            groups,
        }
    }

    #[must_use]
    pub fn service_account(namespace: &str, name: &str) -> User {
        let own = format!("system:serviceaccounts:{namespace}");
        User::new(
            &format!("system:serviceaccount:{namespace}:{name}"),
            &["system:serviceaccounts", &own],
        )
    }

    #[must_use]
    pub fn anonymous() -> User {
        User {
            name: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
        }
    }
}

/// Rights of a user or a group. `*` stands for all; a non-resource path may end in `*`.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    /// User name or group name; empty: everybody.
    pub subject: String,
    pub verbs: Vec<String>,
    pub groups: Vec<String>,
    /// Resources, subresources as `pods/status`.
    pub resources: Vec<String>,
    /// Only in these namespaces; empty: everywhere, cluster scope included.
    pub namespaces: Vec<String>,
    /// Paths that are no resources.
    pub paths: Vec<String>,
}

fn split_words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

impl Rule {
    /// A rule over resources; lists are words with blanks between them, `""` is the core group.
    #[must_use]
    pub fn for_resources(subject: &str, verbs: &str, group: &str, resources: &str) -> Rule {
        let (subject, groups) = (subject.to_owned(), vec![group.to_owned()]);
        Rule {
            subject,
            verbs: split_words(verbs),
            groups,
            resources: split_words(resources),
            ..Rule::default()
        }
    }

    /// The same in one namespace only.
    #[must_use]
    pub fn in_namespace(mut self, namespace: &str) -> Rule {
        self.namespaces.push(namespace.to_owned());
        self
    }

    /// A rule over paths that are no resources.
    #[must_use]
    pub fn for_paths(subject: &str, paths: &str) -> Rule {
        Rule {
            subject: subject.to_owned(),
            verbs: vec!["get".into()],
            paths: split_words(paths),
            ..Rule::default()
        }
    }

    fn allows(&self, user: &User, target: &Target) -> bool {
        let subject = self.subject.is_empty()
            || self.subject == user.name
            || user.groups.contains(&self.subject);
        if !subject || !includes(&self.verbs, target.verb) {
            return false;
        }
        let Some(resource) = &target.resource else {
            return self.paths.iter().any(|path| match path.strip_suffix('*') {
                Some(prefix) => target.path.starts_with(prefix),
                None => *path == target.path,
            });
        };
        includes(&self.groups, &resource.group)
            && includes(&self.resources, &full_name(resource))
            && (self.namespaces.is_empty() || includes(&self.namespaces, &resource.namespace))
    }
}

/// True if a rule's list has this word, or `*`.
fn includes(list: &[String], wanted: &str) -> bool {
    list.iter().any(|one| one == "*" || one == wanted)
}

fn full_name(resource: &Resource) -> String {
    match resource.subresource.as_str() {
        "" => resource.resource.clone(),
        sub => format!("{}/{sub}", resource.resource),
    }
}

/// Tokens and rules; both can change while the cloud runs.
#[derive(Debug)]
pub struct Rbac {
    tokens: RwLock<Vec<(String, User)>>,
    rules: RwLock<Vec<Rule>>,
}

impl Default for Rbac {
    /// The rules that every cluster has: health and version for all, discovery for the authenticated, everything
    /// for `system:masters`; and those of Calico's CNI plugin.
    fn default() -> Rbac {
        let cni = "system:serviceaccount:kube-system:calico-cni-plugin";
        let ipam = "blockaffinities ipamblocks ipamhandles clusterinformations ippools ipreservations ipamconfigs";
        let calico = "crd.projectcalico.org";
        let rules = vec![
            Rule::for_paths("", "/healthz /livez /readyz /version /version/"),
            Rule::for_paths(
                "system:authenticated",
                "/api /api/* /apis /apis/* /openapi /openapi/*",
            ),
            Rule::for_paths("system:masters", "*"),
            Rule::for_resources("system:masters", "*", "*", "*"),
            Rule::for_resources(cni, "get", "", "pods nodes namespaces"),
            Rule::for_resources(cni, "patch", "", "pods/status"),
            Rule::for_resources(cni, "get list create update delete", calico, ipam),
        ];
        Rbac {
            tokens: RwLock::default(),
            rules: RwLock::new(rules),
        }
    }
}

impl Rbac {
    /// Makes a token for a user.
    pub fn issue_token(&self, user: User) -> String {
        let account = user
            .name
            .strip_prefix("system:serviceaccount:")
            .and_then(|rest| rest.split_once(':'));
        let token = match account {
            Some((namespace, name)) => pki::service_account_token(namespace, name),
            None => pki::random_bytes::<16>()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        };
        self.tokens.write().push((token.clone(), user));
        token
    }

    /// Forgets a token: from now on it gets 401.
    pub fn revoke_token(&self, token: &str) {
        self.tokens.write().retain(|(known, _)| known != token);
    }

    pub fn add_rule(&self, rule: Rule) {
        self.rules.write().push(rule);
    }

    /// Takes away every rule whose subject is exactly this user or group.
    pub fn remove_rules(&self, subject: &str) {
        self.rules.write().retain(|rule| rule.subject != subject);
    }

    pub(super) fn authenticate(
        &self,
        authorization: Option<&str>,
        certificate: Option<&User>,
    ) -> Result<User, Failure> {
        let mut words = authorization.unwrap_or_default().trim().splitn(3, ' ');
        match (words.next(), words.next()) {
            // Like the real one: only a bearer token counts, and a wrong one is never anonymous.
            (Some(scheme), Some(token))
                if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() =>
            {
                let tokens = self.tokens.read();
                let known = tokens.iter().find(|(known, _)| known == token);
                known
                    .map(|(_, user)| user.clone())
                    .ok_or_else(Failure::unauthorized)
            }
            _ => Ok(certificate.cloned().unwrap_or_else(User::anonymous)),
        }
    }

    pub(super) fn authorize(&self, user: &User, target: &Target) -> Result<(), Failure> {
        if self
            .rules
            .read()
            .iter()
            .any(|rule| rule.allows(user, target))
        {
            return Ok(());
        }
        let (who, verb) = (&user.name, target.verb);
        let Some(resource) = &target.resource else {
            let message = format!(
                "forbidden: User \"{who}\" cannot {verb} path \"{}\"",
                target.path
            );
            return Err(Failure::forbidden_path(message));
        };
        let Resource {
            group,
            name,
            namespace,
            ..
        } = resource;
        let qualified = super::kinds::qualify_name(&resource.resource, group);
        let subject = if name.is_empty() {
            qualified
        } else {
            format!("{qualified} \"{name}\"")
        };
        let place = match namespace.as_str() {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace \"{namespace}\""),
        };
        let what = format!(
            "cannot {verb} resource \"{}\" in API group \"{group}\" {place}",
            full_name(resource)
        );
        let message = format!("{subject} is forbidden: User \"{who}\" {what}");
        Err(Failure::forbidden_resource(
            [&resource.resource, group],
            name,
            message,
        ))
    }
}
