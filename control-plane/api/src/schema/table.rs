use super::TypeDef;

pub(super) fn load() -> Vec<TypeDef> {
    Vec::new()
}
pub(super) fn describe(_: &str, _: &str) -> &'static str {
    ""
}
