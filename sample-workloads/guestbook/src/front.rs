//! The page. Title and greeting come from a ConfigMap, the token from a Secret.

use std::{env, fs};

use crate::http::{Request, Response, call};
use crate::store::TOKEN;

pub fn answer(request: &Request) -> Response {
    match (request.post, request.path.as_str()) {
        (false, "/healthz") => Response::text(200, "ok\n"),
        (false, "/") => match entries(None) {
            Ok(entries) => Response::html(page(&entries)),
            Err(error) => Response::text(502, error),
        },
        (true, "/") => {
            let entry = form_value(&request.body, "entry");
            if entry.trim().is_empty() {
                return Response::text(400, "the form's field entry is empty\n");
            }
            match entries(Some(&entry)) {
                Ok(_) => Response::see_other("/"),
                Err(error) => Response::text(502, error),
            }
        }
        (false, "/entries") => match entries(None) {
            Ok(entries) => Response::text(200, entries),
            Err(error) => Response::text(502, error),
        },
        _ => Response::text(404, "there is / and /entries\n"),
    }
}

fn entries(new: Option<&str>) -> Result<String, String> {
    let store = env::var("STORE").unwrap_or_else(|_| "guestbook-store:8080".to_owned());
    let token = fs::read_to_string(TOKEN).map_err(|error| format!("{TOKEN}: {error}\n"))?;
    let answer = call(&store, "/entries", token.trim(), new).map_err(|error| format!("{store}: {error}\n"))?;
    if answer.status == 200 { Ok(answer.body) } else { Err(format!("{store} says {}: {}", answer.status, answer.body)) }
}

fn page(entries: &str) -> String {
    let title = escape(&env::var("TITLE").unwrap_or_else(|_| "Guestbook".to_owned()));
    let greeting = escape(&env::var("GREETING").unwrap_or_default());
    let list: String = entries.lines().map(|line| format!("<li>{}</li>\n", escape(line))).collect();
    format!(
        "<!doctype html>\n<html lang=en><meta charset=utf-8><title>{title}</title>\n\
         <style>body{{font:1.1rem/1.5 system-ui;max-width:40rem;margin:3rem auto;padding:0 1rem}}\
         input{{font:inherit;width:70%}}button{{font:inherit}}</style>\n\
         <h1>{title}</h1><p>{greeting}</p>\n\
         <form method=post><input name=entry aria-label=Entry required> <button>Sign</button></form>\n\
         <ul>\n{list}</ul>\n</html>\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The value of `name` in a body of form `a=b&c=d`.
fn form_value(body: &str, name: &str) -> String {
    let value = body.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default();
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let hex: String = rest.by_ref().take(2).map(char::from).collect();
                bytes.push(u8::from_str_radix(&hex, 16).unwrap_or(b'?'));
            }
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
