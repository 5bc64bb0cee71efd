// Checks the queries in a file of JSON lines, {"name", "query"} and perhaps {"literal"}, with Microsoft's own parser and
// the tables of advanced hunting: syntax, names and types. tests/kql/check makes the file and calls this.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

// They are scripts of before modules: each puts its names into the global object.
const require = createRequire(import.meta.url);
require('@kusto/language-service-next/bridge.min.js');
require('@kusto/language-service-next/Kusto.Language.Bridge.min.js');
const { GlobalState, KustoCode, Symbols, Syntax } = globalThis.Kusto.Language;

const { tables } = JSON.parse(readFileSync(new URL('../../src/simulator/data/hunting-schema.json', import.meta.url)));
const symbols = Object.entries(tables).map(([name, columns]) => {
  const row = Object.entries(columns).map(([column, type]) => `['${column}']: ${type}`);
  return Symbols.TableSymbol.From(`(${row.join(', ')})`).WithName(name);
});
const globals = GlobalState.Default.WithDatabase(new Symbols.DatabaseSymbol.ctor('hunting', symbols));

const parsed = (query) => KustoCode.ParseAndAnalyze(query, globals);

function listed(enumerable) {
  const items = [];
  for (let index = 0; index < enumerable.Count; index++) items.push(enumerable.getItem(index));
  return items;
}

const diagnostics = (code) => listed(code.GetDiagnostics());

// The value of the one string literal of a query.
function literal(code) {
  const found = [];
  Syntax.SyntaxElement.WalkNodes(code.Syntax, (node) => {
    if (node instanceof Syntax.LiteralExpression && typeof node.LiteralValue === 'string') found.push(node.LiteralValue);
  });
  return found.length === 1 ? found[0] : undefined;
}

// What must be refused, with what: a parser that takes everything would prove nothing.
const CONTROLS = [
  ['an unknown column', 'DeviceFileEvents | where Sha1 == "a"', 'KS142'],
  ['a column in the wrong case', 'DeviceInfo | project deviceid', 'KS142'],
  ['evidence has no MD5', 'AlertEvidence | where MD5 == "a"', 'KS142'],
  ['an unknown table', 'DeviceFileEvent | take 1', 'KS204'],
  ['the table of before', 'DeviceAlertEvents | take 1', 'KS204'],
  ['a misspelt operator', 'DeviceInfo | wher OSPlatform == "a"', 'KS176'],
  ['a literal that ends too early', 'DeviceInfo | where DeviceName == "a" b"', undefined],
  ['a type that cannot be compared', 'DeviceInfo | where OSBuild has "a"', undefined],
  ['a column that the union lacks', 'union DeviceInfo, DeviceNetworkInfo | project SHA1', 'KS142'],
];

let failures = 0;
const fail = (name, text) => {
  failures += 1;
  console.error(`FAILED ${name}: ${text}`);
};

for (const [name, query, expected] of CONTROLS) {
  const codes = diagnostics(parsed(query)).map((diagnostic) => diagnostic.Code);
  const refused = expected === undefined ? codes.length > 0 : codes.includes(expected);
  if (!refused) fail(`control, ${name}`, `it should be refused with ${expected ?? 'anything'}, but got [${codes}]`);
}

const forms = readFileSync(process.argv[2], 'utf8').split('\n').filter(Boolean).map((line) => JSON.parse(line));
if (forms.length === 0) fail('the forms', 'there are none');
for (const { name, query, literal: expected } of forms) {
  const code = parsed(query);
  for (const diagnostic of diagnostics(code)) {
    const before = query.slice(0, diagnostic.Start);
    const line = before.split('\n').length;
    const at = query.slice(diagnostic.Start, diagnostic.Start + Math.min(diagnostic.Length, 60));
    fail(name, `${diagnostic.Code} in line ${line} at ${JSON.stringify(at)}: ${diagnostic.Message}`);
  }
  if (expected !== undefined) {
    const read = literal(code);
    if (read !== expected) fail(name, `the literal reads ${JSON.stringify(read)}, not ${JSON.stringify(expected)}`);
  }
}

console.log(`${forms.length} forms of queries and ${CONTROLS.length} controls, ${failures} failures`);
process.exit(failures === 0 ? 0 : 1);
