// Prints what is said, with kafkajs: npm install kafkajs @kafkajs/confluent-schema-registry fzstd
const { Kafka, CompressionTypes, CompressionCodecs, logLevel } = require("kafkajs");
const { SchemaRegistry } = require("@kafkajs/confluent-schema-registry");
const { decompress } = require("fzstd");

// kafkajs knows the number of zstd and has no code for it.
CompressionCodecs[CompressionTypes.ZSTD] = () => ({
  compress: async () => { throw new Error("this codec only reads"); },
  decompress: async (buffer) => Buffer.from(decompress(buffer)),
});

const prefix = process.env.KAFKA_TOPIC_PREFIX ?? "";
const kafka = new Kafka({ brokers: process.env.KAFKA_BOOTSTRAP_SERVERS.split(","), logLevel: logLevel.ERROR });
const registry = new SchemaRegistry({ host: process.env.SCHEMA_REGISTRY_URL });

async function main() {
  const consumer = kafka.consumer({ groupId: `${prefix}my-service`, readUncommitted: false });
  await consumer.connect();
  await consumer.subscribe({ topic: `${prefix}discord-messages`, fromBeginning: true });
  await consumer.run({
    eachMessage: async ({ message }) => {
      const value = await registry.decode(message.value);
      console.log(value.change === "DELETED" ? `deleted ${value.message_id}` : `${value.author_name} said ${value.content}`);
    },
  });
}

main().catch((error) => { console.error(error); process.exit(1); });
