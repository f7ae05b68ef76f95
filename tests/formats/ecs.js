// Checks events in the json format: ecs.js EVENTS VALUES
//
// EVENTS has an event a line, VALUES beside it what it has to tell. Each field
// is looked up in Elastic's own list of fields, @elastic/ecs; what stands under
// `throttle` is ours, and is compared only.

const fs = require('node:fs');
const net = require('node:net');
const { EcsFlat, EcsVersion } = require('@elastic/ecs');

const PRIVATE = 'throttle';
const SHOWN = 20;

// What a value of a field's type looks like.
const isText = (value) => typeof value === 'string';
const LOOKS = {
  keyword: isText,
  constant_keyword: isText,
  wildcard: isText,
  text: isText,
  match_only_text: isText,
  boolean: (value) => typeof value === 'boolean',
  date: (value) => isText(value) && !Number.isNaN(Date.parse(value)),
  ip: (value) => isText(value) && net.isIP(value) !== 0,
  long: Number.isInteger,
  integer: Number.isInteger,
  float: Number.isFinite,
  scaled_float: Number.isFinite,
};

// The fields of an object with their names in full, and their values.
function* fieldsOf(object, prefix = '') {
  for (const [key, value] of Object.entries(object)) {
    const name = prefix + key;
    if (name === PRIVATE) continue;
    const isObject = typeof value === 'object' && value !== null && !Array.isArray(value);
    if (isObject) yield* fieldsOf(value, `${name}.`);
    else yield [name, value];
  }
}

function* mistakes(event) {
  for (const [name, value] of fieldsOf(event)) {
    const field = EcsFlat[name];
    if (!field) {
      yield `${name} is no field`;
      continue;
    }
    const isList = (field.normalize ?? []).includes('array');
    if (isList !== Array.isArray(value)) yield `${name} is ${isList ? 'no list' : 'a list'}`;
    const looks = LOOKS[field.type];
    if (!looks) yield `${name} has the type ${field.type}, which is not checked`;
    const allowed = field.allowed_values?.map((each) => each.name);
    for (const each of [value].flat()) {
      if (looks && !looks(each)) yield `${name} is no ${field.type}: ${JSON.stringify(each)}`;
      if (allowed && !allowed.includes(each)) yield `${name} may not be ${each}`;
    }
  }
  for (const name of ['@timestamp', 'ecs', 'event', 'message']) {
    if (!(name in event)) yield `${name} is missing`;
  }
  if (event.ecs?.version !== EcsVersion) yield `ecs.version is not ${EcsVersion}`;
  if (event.event?.kind === 'signal') yield 'event.kind: signal is reserved';
  const categories = EcsFlat['event.category'].allowed_values;
  const expected = (event.event?.category ?? []).flatMap(
    (name) => categories.find((category) => category.name === name)?.expected_event_types ?? [],
  );
  for (const type of event.event?.type ?? []) {
    if (!expected.includes(type)) yield `event.type ${type} does not go with its category`;
  }
}

const at = (object, path) => path.split('.').reduce((value, key) => value?.[key], object);
const millis = (time) => (time === undefined ? undefined : Math.trunc(Date.parse(time)));
const number = (text) => (text === undefined ? undefined : Number(text));
const flag = (value) => value ?? false;
const same = (value) => value;

// Where the values are.
const PLACES = [
  ['time_ms', '@timestamp', millis],
  ['sequence', 'event.sequence', same],
  ['id', 'event.id', same],
  ['action', 'event.action', same],
  ['code', 'event.code', same],
  ['severity', 'event.severity', same],
  ['start_ms', 'event.start', millis],
  ['end_ms', 'event.end', millis],
  ['duration_ns', 'event.duration', same],
  ['host', 'host.hostname', same],
  ['host_id', 'host.id', same],
  ['boot_id', 'host.boot.id', same],
  ['interface', 'observer.egress.interface.name', same],
  ['interface_index', 'observer.egress.interface.id', number],
  ['source_ip', 'source.ip', same],
  ['source_port', 'source.port', same],
  ['destination_ip', 'destination.ip', same],
  ['destination_port', 'destination.port', same],
  ['pid', 'process.pid', same],
  ['process', 'process.name', same],
  ['executable', 'process.executable', same],
  ['entity_id', 'process.entity_id', same],
  ['args_count', 'process.args_count', same],
  ['process_start_ms', 'process.start', millis],
  ['parent_pid', 'process.parent.pid', same],
  ['parent', 'process.parent.name', same],
  ['thread_id', 'process.thread.id', same],
  ['thread', 'process.thread.name', same],
  ['user_id', 'process.user.id', number],
  ['user', 'process.user.name', same],
  ['user_id', 'user.id', number],
  ['user', 'user.name', same],
  ['container', 'container.id', same],
  ['runtime', 'container.runtime', same],
  ['pod', 'orchestrator.resource.id', same],
  ['cgroup_id', 'throttle.cgroup.id', number],
  ['cgroup', 'throttle.cgroup.path', same],
  ['episode', 'throttle.episode', same],
  ['scope_kind', 'throttle.scope.kind', same],
  ['scope_id', 'throttle.scope.id', same],
  ['scope_name', 'throttle.scope.name', same],
  ['mode', 'throttle.mode', same],
  ['limit', 'throttle.limit', same],
  ['rate', 'throttle.rate', same],
  ['half_open', 'throttle.half_open', same],
  ['queued', 'throttle.queued', same],
  ['peak_half_open', 'throttle.peak_half_open', same],
  ['peak_queued', 'throttle.peak_queued', same],
  ['total_attempts', 'throttle.totals.attempts', same],
  ['total_deferred', 'throttle.totals.deferred', same],
  ['total_expired', 'throttle.totals.expired', same],
  ['program_count', 'throttle.program_count', same],
  ['destination_count', 'throttle.destination_count', same],
  ['ending', 'throttle.ending', same],
  ['lost', 'throttle.lost', same],
];

// What a shortened event need not tell in full.
const isLong = (value) => typeof value === 'string' && Buffer.byteLength(value) > 64;

function* differences(event, values) {
  for (const [name, place, read] of PLACES) {
    const [told, value] = [read(at(event, place)), values[name]];
    if (event.throttle.shortened && isLong(value)) continue;
    if (told !== value) yield `${place} is ${JSON.stringify(told)}, not ${JSON.stringify(value)}`;
  }
  if ('exited' in values && flag(event.throttle.exited) !== values.exited) yield 'throttle.exited is wrong';
}

const [events, values] = process.argv.slice(2).map((path) => {
  const lines = fs.readFileSync(path, 'utf8').split('\n');
  return lines.slice(0, -1);
});
const found = [];
if (events.length !== values.length) found.push(`${events.length} events, but values for ${values.length}`);
for (const [index, line] of events.entries()) {
  try {
    const event = JSON.parse(line);
    for (const what of mistakes(event)) found.push(`event ${index + 1}: ${what}`);
    for (const what of differences(event, JSON.parse(values[index]))) found.push(`event ${index + 1}: ${what}`);
  } catch (error) {
    found.push(`event ${index + 1}: ${error.message}`);
  }
}
const isOk = events.length > 0 && found.length === 0;
for (const what of found.slice(0, SHOWN)) console.log(what);
console.log(`@elastic/ecs ${EcsVersion}: ${events.length} events, ${found.length} mistakes`);
console.log(`test result: ${isOk ? 'ok. 1 passed; 0 failed' : 'FAILED. 0 passed; 1 failed'}; 0 ignored`);
process.exit(isOk ? 0 : 1);
