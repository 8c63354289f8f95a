//! Elements on their way to the kernel: many in one message, all in one transaction.

use std::io;

use super::super::model::Endpoint;
use super::super::netfilter::{
    AF_INET, Attributes, CREATE, Connection, ERROR, Header, Messages, REQUEST, find, messages,
};
use super::element::{Map, Place, Value};
use crate::error::{Error, Result};
use crate::namespace;

const NFTABLES: u16 = 10;
const SUBSYSTEM: u16 = NFTABLES << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
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
    /// Changes the elements of a table.
    pub(super) async fn apply(self, table: &str) -> Result<()> {
        if self.gone.is_empty() && self.come.is_empty() {
            return Ok(());
        }
        send(self.messages(table)).await
    }

    /// Changes the elements of a table that is not in force, puts it in force, and takes the `old` ones away.
    pub(super) async fn apply_instead_of(self, old: &[String], table: &str) -> Result<()> {
        let mut batch = self.messages(table);
        batch.add(header(NEW_TABLE, 0), |it| {
            it.name(TABLE_NAME, table);
            it.put(TABLE_FLAGS, &0_u32.to_be_bytes());
        });
        delete(&mut batch, old);
        send(batch).await
    }

    fn messages(mut self, table: &str) -> Messages {
        self.gone.sort_unstable_by_key(|it| it.map);
        self.come.sort_unstable_by_key(|it| it.0.map);
        let mut batch = begun();
        for places in self.gone.chunk_by(|a, b| a.map == b.map).flat_map(|of_map| of_map.chunks(TOGETHER)) {
            batch.add(header(DELETE_ELEMENTS, 0), |it| {
                list(it, table, places.first().map(|it| it.map), places, |it, place| key(it, *place));
            });
        }
        for elements in self.come.chunk_by(|a, b| a.0.map == b.0.map).flat_map(|of_map| of_map.chunks(TOGETHER)) {
            batch.add(header(NEW_ELEMENTS, CREATE), |it| {
                list(it, table, elements.first().map(|it| it.0.map), elements, |it, (place, value)| {
                    key(it, *place);
                    data(it, *value);
                });
            });
        }
        batch
    }
}

/// Takes tables away that are there.
pub(super) async fn delete_tables(tables: &[String]) -> Result<()> {
    if tables.is_empty() {
        return Ok(());
    }
    let mut batch = begun();
    delete(&mut batch, tables);
    send(batch).await
}

fn delete(batch: &mut Messages, tables: &[String]) {
    for table in tables {
        batch.add(header(DELETE_TABLE, 0), |it| it.name(TABLE_NAME, table));
    }
}

fn header(kind: u16, flags: u16) -> Header {
    Header { kind, flags: REQUEST | flags, family: AF_INET, resource: 0 }
}

fn edge(kind: u16) -> Header {
    Header { kind, flags: REQUEST, family: 0, resource: NFTABLES }
}

fn begun() -> Messages {
    let mut batch = Messages::default();
    batch.add(edge(BEGIN), |_| {});
    batch
}

/// One transaction: all of it takes effect, or nothing.
async fn send(mut batch: Messages) -> Result<()> {
    // An answer to the last one says that the kernel is through.
    let last = batch.acknowledged();
    batch.add(edge(END), |_| {});
    let exchange = move || {
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
    };
    let failed = |error: io::Error| Error::Nft { doing: "elements of Services", message: error.to_string() };
    namespace::on_thread(move || exchange().map_err(failed)).await
}

/// A table of this machine, of anybody.
pub(super) struct Known {
    pub(super) name: String,
    pub(super) in_force: bool,
}

pub(super) async fn tables() -> Result<Vec<Known>> {
    let read = |attributes: &[u8]| {
        let name = find(attributes, TABLE_NAME)?.split(|byte| *byte == 0).next()?;
        let flags =
            find(attributes, TABLE_FLAGS).and_then(|it| it.first_chunk()).map_or(0, |it| u32::from_be_bytes(*it));
        Some(Known { name: String::from_utf8_lossy(name).into_owned(), in_force: flags & DORMANT == 0 })
    };
    namespace::on_thread(move || {
        let tables = Connection::open().and_then(|kernel| kernel.list(GET_TABLE, |it| read(it.attributes())));
        tables.map_err(Error::system("list tables"))
    })
    .await
}

/// The names of nftables' IPv4 tables that are in force on this machine, of anybody.
pub async fn tables_in_force() -> Result<Vec<String>> {
    Ok(tables().await?.into_iter().filter(|table| table.in_force).map(|table| table.name).collect())
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
