//! YAML as Go's YAML library hands it out: scalars as they were spelled, merges folded in.
//!
//! The only module that touches the YAML library. Does not know what a channel is.
//! `serde_yaml::Value` would turn the key `1.10` into `1.1`, and knows no lines. So the text is read
//! twice: once for its shape, once for the spelling of every scalar. Lines are `channels_lines`'.

use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor,
};

/// One value, scalars as spelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// `null`, `~` or nothing, without quotes.
    Null(String),
    /// Any other scalar.
    Scalar(String),
    /// A sequence.
    List(Vec<Self>),
    /// A mapping, in the order of the text.
    Map(Vec<(String, Self)>),
}

/// Something wrong at a path such as `channels.a.columns[2]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The path; empty for the document.
    pub path: String,
    /// What is wrong.
    pub text: String,
}

/// Why a text is no YAML at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotYaml {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub text: String,
}

/// `path.key`.
#[must_use]
pub fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Reads `text`. Merges are not folded in yet: see [`Node::merged`].
///
/// # Errors
/// [`NotYaml`], with the line where the library gave up.
pub fn parse(text: &str) -> Result<Node, NotYaml> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#')) {
        return Ok(Node::Null(String::new()));
    }
    let shape =
        Shape::deserialize(serde_yaml::Deserializer::from_str(text)).map_err(|e| not_yaml(&e))?;
    if matches!(shape, Shape::Null) {
        // Perhaps a document of no scalar at all: there is nothing to read a second time.
        return Ok(Node::Null(String::new()));
    }
    Spelled(&shape).deserialize(serde_yaml::Deserializer::from_str(text)).map_err(|e| not_yaml(&e))
}

fn not_yaml(error: &serde_yaml::Error) -> NotYaml {
    NotYaml {
        line: error.location().map_or(1, |location| location.line()),
        text: error.to_string(),
    }
}

impl Node {
    /// The value under `key`; one that is null counts as not given.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        let Self::Map(entries) = self else {
            return None;
        };
        let (_, value) = entries.iter().find(|(name, _)| name == key)?;
        (!matches!(value, Self::Null(_))).then_some(value)
    }

    /// What it is, for a message.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null(_) => "nothing",
            Self::Scalar(_) => "a plain value",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }

    /// Folds every `<<` into the map around it (what stands there itself wins, then the earlier
    /// source), and reports keys that stand twice.
    #[must_use]
    pub fn merged(self, path: &str, faults: &mut Vec<Fault>) -> Self {
        match self {
            Self::List(items) => Self::List(
                items
                    .into_iter()
                    .enumerate()
                    .map(|(at, item)| item.merged(&format!("{path}[{at}]"), faults))
                    .collect(),
            ),
            Self::Map(entries) => Self::Map(merged_map(entries, path, faults)),
            scalar => scalar,
        }
    }
}

fn merged_map(
    entries: Vec<(String, Node)>,
    path: &str,
    faults: &mut Vec<Fault>,
) -> Vec<(String, Node)> {
    let mut own: Vec<(String, Node)> = Vec::new();
    let mut inherited = Vec::new();
    for (key, value) in entries {
        let path = join(path, &key);
        let value = value.merged(&path, faults);
        if key == "<<" {
            gather(value, &path, &mut inherited, faults);
        } else if own.iter().any(|(name, _)| *name == key) {
            faults.push(Fault { path, text: "stands twice; keep one".to_owned() });
        } else {
            own.push((key, value));
        }
    }
    for (key, value) in inherited {
        if own.iter().all(|(name, _)| *name != key) {
            own.push((key, value));
        }
    }
    own
}

fn gather(source: Node, path: &str, inherited: &mut Vec<(String, Node)>, faults: &mut Vec<Fault>) {
    match source {
        Node::Map(entries) => inherited.extend(entries),
        Node::List(items) => {
            for (at, item) in items.into_iter().enumerate() {
                match item {
                    Node::Map(entries) => inherited.extend(entries),
                    other => faults.push(bad_merge(&format!("{path}[{at}]"), &other)),
                }
            }
        }
        other => faults.push(bad_merge(path, &other)),
    }
}

fn bad_merge(path: &str, found: &Node) -> Fault {
    let text =
        format!("merges a map or a list of maps, such as *anchor, but this is {}", found.kind());
    Fault { path: path.to_owned(), text }
}

/// The first reading: what is a map, a list, a scalar.
enum Shape {
    Null,
    Scalar,
    List(Vec<Shape>),
    Map(Vec<(Shape, Shape)>),
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map, a list or a plain value, without a !tag")
    }

    fn visit_unit<E>(self) -> Result<Shape, E> {
        Ok(Shape::Null)
    }

    fn visit_none<E>(self) -> Result<Shape, E> {
        Ok(Shape::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }

    fn visit_str<E>(self, _: &str) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Shape::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key()? {
            if matches!(key, Shape::List(_) | Shape::Map(_)) {
                return Err(A::Error::custom(
                    "a key of a map is a plain value, not a list or a map",
                ));
            }
            entries.push((key, map.next_value()?));
        }
        Ok(Shape::Map(entries))
    }
}

/// The second reading: the same text along the shape that the first one found.
struct Spelled<'s>(&'s Shape);

impl<'de> DeserializeSeed<'de> for Spelled<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        match self.0 {
            Shape::Null => deserializer.deserialize_str(TextVisitor).map(Node::Null),
            Shape::Scalar => deserializer.deserialize_str(TextVisitor).map(Node::Scalar),
            Shape::List(items) => deserializer.deserialize_seq(ListVisitor(items)),
            Shape::Map(entries) => deserializer.deserialize_map(MapVisitor(entries)),
        }
    }
}

struct TextVisitor;

impl Visitor<'_> for TextVisitor {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a plain value")
    }

    fn visit_str<E>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
}

struct ListVisitor<'s>(&'s [Shape]);

impl<'de> Visitor<'de> for ListVisitor<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut items = Vec::with_capacity(self.0.len());
        for shape in self.0 {
            items.extend(list.next_element_seed(Spelled(shape))?);
        }
        Ok(Node::List(items))
    }
}

struct MapVisitor<'s>(&'s [(Shape, Shape)]);

impl<'de> Visitor<'de> for MapVisitor<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::with_capacity(self.0.len());
        for (key, value) in self.0 {
            if let Some(Node::Null(name) | Node::Scalar(name)) = map.next_key_seed(Spelled(key))? {
                entries.push((name, map.next_value_seed(Spelled(value))?));
            }
        }
        Ok(Node::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar(text: &str) -> Node {
        Node::Scalar(text.to_owned())
    }

    fn read(text: &str) -> Node {
        let mut faults = Vec::new();
        let node = parse(text).unwrap().merged("", &mut faults);
        assert!(faults.is_empty(), "{faults:?}");
        node
    }

    #[test]
    fn scalars_are_handed_out_as_they_were_spelled() {
        let node = read(
            "[1.10, 007, 0x1F, 1e3, True, yes, 'null', \"a b\", 340282366920938463463374607431768211455]",
        );
        let spelled = [
            "1.10",
            "007",
            "0x1F",
            "1e3",
            "True",
            "yes",
            "null",
            "a b",
            "340282366920938463463374607431768211455",
        ];
        assert_eq!(node, Node::List(spelled.map(scalar).to_vec()));
        assert_eq!(
            read("[null, ~]"),
            Node::List(vec![Node::Null("null".to_owned()), Node::Null("~".to_owned())])
        );
    }

    #[test]
    fn numbers_and_words_are_keys_as_they_were_spelled() {
        let node = read("123: a\n1.10: b\nyes: c\nnull: d\n");
        for (key, value) in [("123", "a"), ("1.10", "b"), ("yes", "c"), ("null", "d")] {
            assert_eq!(node.get(key), Some(&scalar(value)), "{key}");
        }
    }

    #[test]
    fn an_empty_document_is_nothing() {
        for text in ["", "# only a comment\n", "---\n", "null"] {
            assert!(matches!(parse(text), Ok(Node::Null(_))), "{text:?}");
        }
    }

    #[test]
    fn merges_yield_to_what_stands_in_the_map_and_to_earlier_sources() {
        let node = read(
            "a: &a {x: 1, y: 1}\nb: &b\n  <<: *a\n  y: 2\n  z: 2\nc:\n  <<: [*b, {x: 9, w: 9}]\n  z: 3\nd: {<<: *a}\n",
        );
        let c = node.get("c").unwrap();
        for (key, value) in [("x", "1"), ("y", "2"), ("z", "3"), ("w", "9")] {
            assert_eq!(c.get(key), Some(&scalar(value)), "{key}");
        }
        assert!(c.get("<<").is_none());
        assert_eq!(node.get("d"), node.get("a"));
    }

    #[test]
    fn a_key_that_stands_twice_and_a_merge_of_a_scalar_are_faults() {
        let mut faults = Vec::new();
        let text = "a: 1\nb:\n  c: 1\n  c: 2\n  <<: 5\n";
        let node = parse(text).unwrap().merged("", &mut faults);
        assert_eq!(node.get("b").unwrap().get("c"), Some(&scalar("1")));
        let paths: Vec<_> = faults.iter().map(|fault| fault.path.as_str()).collect();
        assert_eq!(paths, ["b.c", "b.<<"]);
    }

    #[test]
    fn broken_yaml_is_refused_with_its_line() {
        assert!((2..=4).contains(&parse("a: 1\nb: [1, 2\nc: 3\n").unwrap_err().line));
        let tagged = parse("a: 1\nb: !foo x\n").unwrap_err();
        assert_eq!(tagged.line, 2);
        assert!(tagged.text.contains("without a !tag"), "{tagged:?}");
    }
}
