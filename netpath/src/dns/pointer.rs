//! Reverse look-ups: from an address to the names of its container.

use super::wire::{Query, Writer, code};
use hickory_proto::rr::{Name, RData, Record, rdata::PTR};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder};
use std::net::IpAddr;

/// The address of a name below `in-addr.arpa` or `ip6.arpa`; `None`: it is none, or a prefix.
pub(super) fn address(query: &Query<'_>) -> Option<IpAddr> {
    let prefix = name(query)?.parse_arpa_name().ok()?;
    (prefix.prefix_len() == prefix.max_prefix_len()).then(|| prefix.addr())
}

fn name(query: &Query<'_>) -> Option<Name> {
    Name::read(&mut BinDecoder::new(query.labels())).ok()
}

pub(super) fn write(query: &Query<'_>, limit: usize, names: &[&str], ttl: u32, out: &mut Vec<u8>) {
    let (mut records, mut count) = (Vec::new(), 0);
    if let Some(owner) = name(query) {
        for target in names {
            // A name that no question can have is not an answer either.
            let Ok(target) = Name::from_ascii(format!("{target}.")) else { continue };
            let record = Record::from_rdata(owner.clone(), ttl, RData::PTR(PTR(target)));
            let mut bytes = Vec::new();
            let mut encoder = BinEncoder::new(&mut bytes);
            if record.emit(&mut encoder).is_ok() {
                records.extend_from_slice(&bytes);
                count += 1;
            }
        }
    }
    let mut writer = Writer::new(query, code::NO_ERROR, limit, out).authoritative();
    writer.records(&records, [count, 0, 0], &[], 0);
    writer.finish();
}
