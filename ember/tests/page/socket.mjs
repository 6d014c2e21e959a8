// A client of a websocket (RFC 6455) that carries texts on this machine. Node.js has one of its own from 22 on; tests run with 18.

import { randomBytes } from 'node:crypto';
import { connect } from 'node:net';

/** Connects, and calls `receive` with each text that comes. */
export async function openSocket(url, receive) {
  const { hostname, port, pathname } = new URL(url);
  const socket = connect(Number(port), hostname);
  await new Promise((resolve, reject) => { socket.once('connect', resolve); socket.once('error', reject); });
  socket.setNoDelay(true);
  socket.write(`GET ${pathname} HTTP/1.1\r\nHost: ${hostname}:${port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${randomBytes(16).toString('base64')}\r\n\r\n`);
  let rest = Buffer.alloc(0), parts = [], opened;
  const open = new Promise((resolve, reject) => { opened = { resolve, reject }; });
  socket.on('error', () => {});
  socket.on('data', data => {
    rest = Buffer.concat([rest, data]);
    if (opened) {
      const end = rest.indexOf('\r\n\r\n');
      if (end < 0) return;
      const [status] = rest.toString('latin1').split('\r\n');
      if (status.includes(' 101 ')) opened.resolve(); else opened.reject(new Error(`${url}: ${status}`));
      opened = undefined;
      rest = rest.subarray(end + 4);
    }
    for (let frame; (frame = readFrame(rest));) {
      rest = rest.subarray(frame.end);
      if (frame.code === 9) socket.write(writeFrame(10, frame.data));
      if (frame.code > 2) continue;
      parts.push(frame.data);
      if (frame.last) { receive(Buffer.concat(parts).toString()); parts = []; }
    }
  });
  await open;
  return { send: text => socket.write(writeFrame(1, Buffer.from(text))), close: () => socket.destroy() };
}

/** The first frame of what a server has sent, where it is whole. */
function readFrame(bytes) {
  if (bytes.length < 2) return null;
  const short = bytes[1] & 127, at = short === 127 ? 10 : short === 126 ? 4 : 2;
  if (bytes.length < at) return null;
  const length = short === 127 ? Number(bytes.readBigUInt64BE(2)) : short === 126 ? bytes.readUInt16BE(2) : short;
  return bytes.length < at + length ? null : { last: bytes[0] > 127, code: bytes[0] & 15, data: bytes.subarray(at, at + length), end: at + length };
}

/** A frame as clients send it: masked. */
function writeFrame(code, data) {
  const long = data.length > 65535 ? 127 : data.length > 125 ? 126 : data.length, mask = randomBytes(4);
  const head = Buffer.alloc(long === 127 ? 10 : long === 126 ? 4 : 2);
  head[0] = 128 | code;
  head[1] = 128 | long;
  if (long === 127) head.writeBigUInt64BE(BigInt(data.length), 2);
  if (long === 126) head.writeUInt16BE(data.length, 2);
  return Buffer.concat([head, mask, data.map((byte, i) => byte ^ mask[i & 3])]);
}
