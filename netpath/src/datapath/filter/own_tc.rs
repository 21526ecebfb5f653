//! How netpath's own filters of traffic control are told from those of others.

use rtnetlink::packet_route::tc::TcMessage;

/// Above the range that the kernel assigns (49,152 and down), so that other filters run before.
pub(in crate::datapath) const PRIORITY: u16 = 0xC0DE;
pub(in crate::datapath) const HANDLE: u32 = 1;

pub(in crate::datapath) fn is_own(filter: &TcMessage) -> bool {
    filter.header.info >> 16 == u32::from(PRIORITY) && u32::from(filter.header.handle) == HANDLE
}
