//! Label and field selectors.
use super::json::Json;
use super::kinds::Kind;
use super::status::Failure;

/// Both selectors of a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector {
    labels: Vec<Term>,
    fields: Vec<Term>,
}

#[derive(Clone, Debug)]
enum Term {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

impl Selector {
    pub(super) fn parse(kind: &Kind, labels: &str, fields: &str) -> Result<Selector, Failure> {
        let labels = split_terms(labels)
            .into_iter()
            .map(label_term)
            .collect::<Result<_, _>>()?;
        let fields = split_terms(fields)
            .into_iter()
            .map(|text| field_term(kind, text))
            .collect::<Result<_, _>>()?;
        Ok(Selector { labels, fields })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(super) fn matches(&self, object: &Json) -> bool {
        self.labels
            .iter()
            .all(|term| term.accepts(label_value(object, term.key())))
            && self
                .fields
                .iter()
                .all(|term| term.accepts(Some(field_value(object, term.key()))))
    }
}

fn label_value<'a>(object: &'a Json, key: &str) -> Option<&'a str> {
    match object.get_path(&["metadata", "labels", key]) {
        Some(Json::String(value)) => Some(value),
        _ => None,
    }
}

fn field_value<'a>(object: &'a Json, key: &str) -> &'a str {
    object.text_at(&key.split('.').collect::<Vec<_>>())
}

impl Term {
    fn key(&self) -> &str {
        let (Term::In(key, _) | Term::NotIn(key, _) | Term::Exists(key) | Term::Absent(key)) = self;
        key
    }

    /// True if an object with this value of the term's key is selected; `None`: it has no such label.
    fn accepts(&self, value: Option<&str>) -> bool {
        match self {
            Term::In(_, wanted) => value.is_some_and(|found| wanted.iter().any(|one| one == found)),
            Term::NotIn(_, wanted) => {
                value.is_none_or(|found| wanted.iter().all(|one| one != found))
            }
            Term::Exists(_) => value.is_some(),
            Term::Absent(_) => value.is_none(),
        }
    }
}

/// Splits at commas outside of parentheses.
fn split_terms(text: &str) -> Vec<&str> {
    let mut depth = 0;
    text.split(|c: char| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|term| !term.is_empty())
    .collect()
}

fn parse_comparison(text: &str) -> Option<Term> {
    let (key, value, negated) = if let Some((key, value)) = text.split_once("!=") {
        (key, value, true)
    } else if let Some((key, value)) = text.split_once("==") {
        (key, value, false)
    } else {
        let (key, value) = text.split_once('=')?;
        (key, value, false)
    };
    let (key, value) = (key.trim().to_owned(), vec![value.trim().to_owned()]);
    Some(if negated {
        Term::NotIn(key, value)
    } else {
        Term::In(key, value)
    })
}

fn label_term(text: &str) -> Result<Term, Failure> {
    if text.starts_with('=') {
        let found = if text.starts_with("==") { "==" } else { "=" };
        return Err(Failure::bad_request(format!(
            "found '{found}', expected: !, identifier, or 'end of string'"
        )));
    }
    if let Some((head, set)) = text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        let values = set
            .split(',')
            .map(|value| value.trim().to_owned())
            .collect();
        return match head.split_whitespace().collect::<Vec<_>>()[..] {
            [key, "in"] => Ok(Term::In(key.to_owned(), values)),
            [key, "notin"] => Ok(Term::NotIn(key.to_owned(), values)),
            _ => Err(Failure::bad_request(format!(
                "unable to parse requirement: {text}"
            ))),
        };
    }
    Ok(
        parse_comparison(text).unwrap_or_else(|| match text.strip_prefix('!') {
            Some(key) => Term::Absent(key.trim().to_owned()),
            None => Term::Exists(text.to_owned()),
        }),
    )
}

fn field_term(kind: &Kind, text: &str) -> Result<Term, Failure> {
    let term = parse_comparison(text).ok_or_else(|| {
        Failure::bad_request(format!("invalid selector: '{text}'; can't understand it"))
    })?;
    let key = term.key();
    let known = matches!(key, "metadata.name" | "metadata.namespace")
        || match kind.resource {
            "pods" => matches!(
                key,
                "spec.nodeName"
                    | "spec.restartPolicy"
                    | "spec.serviceAccountName"
                    | "status.phase"
                    | "status.podIP"
            ),
            "secrets" => key == "type",
            "nodes" => key == "spec.unschedulable",
            "namespaces" => key == "status.phase",
            "events" => key.starts_with("involvedObject.") || key == "reason" || key == "type",
            _ => false,
        };
    if known {
        return Ok(term);
    }
    let only = r#"only "metadata.name", "metadata.namespace""#;
    Err(Failure::bad_request(format!(
        "\"{key}\" is not a known field selector: {only}"
    )))
}
