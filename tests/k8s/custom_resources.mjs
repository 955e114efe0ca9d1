// Holds resources of prometheus-operator (a JSON list on stdin) to its published models, which accept unknown fields: a
// proxy notes what the validator looks at, and what it never asked for is a field that it does not know.
import { readFileSync } from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

const models = path.join(process.argv[2], "node_modules/@kubernetes-models/prometheus-operator/_schemas");
const prefix = "ComGithubPrometheusOperatorPrometheusOperatorPkgApisMonitoringV1";

function watched(value, where, asked) {
  if (typeof value !== "object" || value === null) return value;
  for (const key of Object.keys(value)) asked.set(`${where}.${key}`, asked.get(`${where}.${key}`) ?? false);
  return new Proxy(value, {
    get(target, key) {
      if (Object.hasOwn(target, key)) asked.set(`${where}.${String(key)}`, true);
      return watched(target[key], `${where}.${String(key)}`, asked);
    },
  });
}

const problems = [];
for (const resource of JSON.parse(readFileSync(0, "utf8"))) {
  const { validate } = await import(pathToFileURL(path.join(models, `${prefix}${resource.kind}.js`)));
  const asked = new Map();
  if (!validate(watched(resource, resource.kind, asked))) {
    problems.push(...validate.errors.map((error) => `${resource.kind}${error.instancePath}: ${error.message ?? error.keyword}`));
  }
  for (const [field, known] of asked) if (!known) problems.push(`${field}: unknown field`);
}
process.stdout.write(JSON.stringify(problems));
