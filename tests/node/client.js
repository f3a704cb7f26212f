// A client that knows nothing of this project: kafkajs and its schema registry, as their documentation uses them.
// node client.js COMMAND '{"broker": …, "registry": …, "prefix": …, …}'; prints one JSON document.
const { Kafka, CompressionTypes, CompressionCodecs, logLevel } = require("kafkajs");
const { SchemaRegistry } = require("@kafkajs/confluent-schema-registry");
const { decompress } = require("fzstd");

// kafkajs knows the number of zstd and has no code for it.
CompressionCodecs[CompressionTypes.ZSTD] = () => ({
  compress: async () => { throw new Error("this codec only reads"); },
  decompress: async (buffer) => Buffer.from(decompress(buffer)),
});

const [command, text] = process.argv.slice(2);
const given = JSON.parse(text);
const kafka = new Kafka({ clientId: "foreign", brokers: [given.broker], logLevel: logLevel.ERROR });
const registry = new SchemaRegistry({ host: given.registry });

async function read(topic, wanted, group) {
  const consumer = kafka.consumer({ groupId: `${given.prefix}${group}`, readUncommitted: false });
  await consumer.connect();
  await consumer.subscribe({ topic: `${given.prefix}${topic}`, fromBeginning: true });
  const found = [];
  const last = await new Promise((resolve, reject) => {
    consumer.run({
      eachMessage: async ({ partition, message }) => {
        try {
          const value = await registry.decode(message.value);
          found.push({ key: message.key.toString(), partition, value });
          if (wanted(found)) resolve(found);
        } catch (error) { reject(error); }
      },
    });
  });
  await consumer.disconnect();
  return last;
}

async function produce(topic, messages) {
  const producer = kafka.producer();
  await producer.connect();
  const partitions = {};
  for (const message of messages) {
    const [done] = await producer.send({ topic: `${given.prefix}${topic}`, messages: [message] });
    partitions[message.key] = done.partition;
  }
  await producer.disconnect();
  return partitions;
}

const commands = {
  read: () => read(given.topic, (found) => found.length >= given.count, "node-read"),
  produce: () => produce(given.topic, given.keys.map((key) => ({ key, value: "x" }))),
  ask: async () => {
    const id = await registry.getRegistryId(`${given.prefix}bot-queries-value`, 1);
    const value = await registry.encode(id, given.query);
    await produce("bot-queries", [{ key: given.query.query_id, value }]);
    const mine = (found) => found.some(({ value }) => value.query_id === given.query.query_id);
    const found = await read("bot-responses", mine, "node-ask");
    return found.find(({ value }) => value.query_id === given.query.query_id);
  },
};

commands[command]().then(
  (result) => {
    process.stdout.write(JSON.stringify(result, (_, value) => (typeof value === "bigint" ? String(value) : value)));
    process.exit(0);
  },
  (error) => { console.error(error); process.exit(1); },
);
