//! Elements on their way to the kernel: many in one message, all in one transaction.

use std::io;

use super::super::model::Endpoint;
use super::super::netfilter::{
    ACK, AF_INET, Attributes, CREATE, Connection, ERROR, Header, Messages, REQUEST, find, messages,
};
use super::element::{Map, Place, Value};
use crate::error::{Error, Result};
use crate::namespace;

const NFTABLES: u16 = 10;
const SUBSYSTEM: u16 = NFTABLES << 8;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const NEW_ELEMENTS: u16 = SUBSYSTEM | 12;
const DELETE_ELEMENTS: u16 = SUBSYSTEM | 14;
const BEGIN: u16 = 16;
const END: u16 = 17;
/// Attributes of a table, a list of elements, an element, its data and a verdict.
const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const GOTO: i32 = -4;
/// A table that is not in force.
const DORMANT: u32 = 1;
/// So many elements a message: an attribute is at most 64 KiB, an element less than 80 bytes.
const TOGETHER: usize = 800;

/// What is to become of the elements of a table, all of it or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Elements {
    pub(super) gone: Vec<Place>,
    pub(super) come: Vec<(Place, Value)>,
}

impl Elements {
    pub(super) async fn apply(self, table: &str) -> Result<()> {
        if self.gone.is_empty() && self.come.is_empty() {
            return Ok(());
        }
        let table = table.to_owned();
        let failed = |error: io::Error| Error::Nft { doing: "elements of Services", message: error.to_string() };
        namespace::on_thread(move || self.apply_here(&table).map_err(failed)).await
    }

    fn apply_here(mut self, table: &str) -> io::Result<()> {
        self.gone.sort_unstable_by_key(|it| it.map);
        self.come.sort_unstable_by_key(|it| it.0.map);
        let gone = self.gone.chunk_by(|a, b| a.map == b.map).flat_map(|of_map| of_map.chunks(TOGETHER));
        let come = self.come.chunk_by(|a, b| a.0.map == b.0.map).flat_map(|of_map| of_map.chunks(TOGETHER));
        let (gone, come): (Vec<_>, Vec<_>) = (gone.collect(), come.collect());

        let mut batch = Messages::default();
        let edge = |kind| Header { kind, flags: REQUEST, family: 0, resource: NFTABLES };
        batch.add(edge(BEGIN), |_| {});
        let mut left = gone.len() + come.len();
        let mut last = 0;
        // An answer to the last one says that the kernel is through.
        let mut header = |kind, flags| {
            left -= 1;
            let ack = if left == 0 { ACK } else { 0 };
            Header { kind, flags: REQUEST | flags | ack, family: AF_INET, resource: 0 }
        };
        for places in gone {
            last = batch.add(header(DELETE_ELEMENTS, 0), |it| {
                list(it, table, places.first().map(|it| it.map), places, |it, place| key(it, *place));
            });
        }
        for elements in come {
            last = batch.add(header(NEW_ELEMENTS, CREATE), |it| {
                list(it, table, elements.first().map(|it| it.0.map), elements, |it, (place, value)| {
                    key(it, *place);
                    data(it, *value);
                });
            });
        }
        batch.add(edge(END), |_| {});

        let kernel = Connection::open()?;
        kernel.send(&batch)?;
        loop {
            for answer in messages(&kernel.receive()?).filter(|it| it.kind == ERROR) {
                answer.result()?;
                if answer.number == last {
                    return Ok(());
                }
            }
        }
    }
}

/// The names of nftables' IPv4 tables that are in force on this machine, of anybody.
pub async fn tables_in_force() -> Result<Vec<String>> {
    let read = |attributes: &[u8]| {
        let name = find(attributes, TABLE_NAME)?.split(|byte| *byte == 0).next()?;
        let flags =
            find(attributes, TABLE_FLAGS).and_then(|it| it.first_chunk()).map_or(0, |it| u32::from_be_bytes(*it));
        (flags & DORMANT == 0).then(|| String::from_utf8_lossy(name).into_owned())
    };
    namespace::on_thread(move || {
        let tables = Connection::open().and_then(|kernel| kernel.list(GET_TABLE, |it| read(it.attributes())));
        tables.map_err(Error::system("list tables"))
    })
    .await
}

/// Which elements of which map.
fn list<T>(
    message: &mut Attributes,
    table: &str,
    map: Option<Map>,
    elements: &[T],
    write: impl Fn(&mut Attributes, &T),
) {
    message.name(LIST_TABLE, table);
    message.name(LIST_SET, map.map_or("", Map::name));
    message.nest(LIST_ELEMENTS, |it| elements.iter().for_each(|element| it.nest(ELEMENT, |it| write(it, element))));
}

fn key(element: &mut Attributes, place: Place) {
    element.nest(ELEMENT_KEY, |it| it.write(DATA_VALUE, |bytes| place.write(bytes)));
}

fn data(element: &mut Attributes, value: Value) {
    match value {
        Value::Nothing => {}
        Value::Endpoint(Endpoint { address, port }) => {
            let [a, b, c, d] = address.octets();
            let [high, low] = port.to_be_bytes();
            element.nest(ELEMENT_DATA, |it| it.put(DATA_VALUE, &[a, b, c, d, high, low, 0, 0]));
        }
        Value::Goto(chain) => element.nest(ELEMENT_DATA, |it| {
            it.nest(DATA_VERDICT, |it| {
                it.put(VERDICT_CODE, &GOTO.to_be_bytes());
                it.name(VERDICT_CHAIN, chain);
            });
        }),
    }
}
