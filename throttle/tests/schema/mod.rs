//! Checks events against the schema of the json format.

use serde_json::Value;

/// A validator of the schema, to which a field that is not in it is an error.
pub(crate) fn validator() -> jsonschema::Validator {
    let mut schema = throttle::encode::json::schema();
    close(&mut schema);
    jsonschema::options()
        .should_validate_formats(true)
        .build(&schema)
        .unwrap()
}

fn close(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.contains_key("properties") {
                fields.insert("additionalProperties".into(), false.into());
            }
            fields.values_mut().for_each(close);
        }
        Value::Array(values) => values.iter_mut().for_each(close),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What is wrong with the event in `line`.
pub(crate) fn errors(validator: &jsonschema::Validator, line: &str) -> Vec<String> {
    match serde_json::from_str(line) {
        Ok(event) => validator
            .iter_errors(&event)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect(),
        Err(error) => vec![error.to_string()],
    }
}
