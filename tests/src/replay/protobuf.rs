//! Kubernetes' protobuf envelope without a schema: enough to compare two bodies and to read an object's identity.
//!
//! A message becomes a JSON object from field number to the list of its values. Which length-delimited field is a
//! string and which a message isn't on the wire: printable bytes are taken as a string, then a message is tried.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

/// Kubernetes' magic number before every protobuf object.
const MAGIC: &[u8] = b"k8s\0";

/// A decoded `runtime.Unknown`.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// `v1`, `apps/v1`, …
    pub api_version: String,
    /// `Pod`, `PodList`, `Status`, …
    pub kind: String,
    /// The object: field number → values.
    pub object: Value,
}

/// Decodes a body of `application/vnd.kubernetes.protobuf`.
///
/// # Errors
/// It isn't one.
pub fn decode_envelope(body: &[u8]) -> Result<Envelope> {
    let bytes = body
        .strip_prefix(MAGIC)
        .context("no Kubernetes protobuf: it doesn't begin with k8s\\0")?;
    let unknown = read_fields(bytes)?;
    let meta = find_bytes(&unknown, 1).context("an envelope without its type")?;
    let meta = decode_message(meta)?;
    let object = find_bytes(&unknown, 2).context("an envelope without its object")?;
    Ok(Envelope {
        api_version: meta["1"][0].as_str().unwrap_or_default().to_owned(),
        kind: meta["2"][0].as_str().unwrap_or_default().to_owned(),
        object: decode_message(object)?,
    })
}

/// The first length-delimited field of this number.
fn find_bytes<'a>(fields: &[(u32, Wire<'a>)], number: u32) -> Option<&'a [u8]> {
    fields.iter().find_map(|(field, wire)| match wire {
        Wire::Bytes(bytes) if *field == number => Some(*bytes),
        _ => None,
    })
}

/// A field's value as it is on the wire.
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// A message as a JSON object.
fn decode_message(bytes: &[u8]) -> Result<Value> {
    let mut object = Map::new();
    for (field, wire) in read_fields(bytes)? {
        let value = match wire {
            Wire::Number(number) => json!(number),
            Wire::Bytes(bytes) => decode_guessed(bytes),
        };
        let values = object.entry(field.to_string()).or_insert_with(|| json!([]));
        values
            .as_array_mut()
            .expect("every entry is made as an array")
            .push(value);
    }
    Ok(Value::Object(object))
}

fn decode_guessed(bytes: &[u8]) -> Value {
    let is_printable = bytes.iter().all(|byte| (b' '..=b'~').contains(byte));
    let message = if is_printable {
        None
    } else {
        decode_message(bytes).ok()
    };
    message.unwrap_or_else(|| Value::String(String::from_utf8_lossy(bytes).into_owned()))
}

fn read_fields(mut bytes: &[u8]) -> Result<Vec<(u32, Wire<'_>)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = read_varint(&mut bytes)?;
        let wire = match tag & 7 {
            0 => Wire::Number(read_varint(&mut bytes)?),
            1 => Wire::Bytes(take_bytes(&mut bytes, 8)?),
            2 => {
                let length = usize::try_from(read_varint(&mut bytes)?)?;
                Wire::Bytes(take_bytes(&mut bytes, length)?)
            }
            5 => Wire::Bytes(take_bytes(&mut bytes, 4)?),
            other => bail!("wire type {other}"),
        };
        let field = u32::try_from(tag >> 3)?;
        if field == 0 {
            bail!("field number 0");
        }
        fields.push((field, wire));
    }
    Ok(fields)
}

fn read_varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().context("it ends within a number")?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    bail!("a number of more than 64 bits")
}

fn take_bytes<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    let (taken, rest) = bytes
        .split_at_checked(length)
        .context("it ends within a field")?;
    *bytes = rest;
    Ok(taken)
}
