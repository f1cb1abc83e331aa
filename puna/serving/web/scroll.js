/** Following an answer as it grows, for as long as the reader wants that. */

import { byId } from "./dom.js";

const NEAR_PX = 60;

let following = true;

/** Make the page follow, and offer the way back to who scrolled up. */
export function setUp() {
  const area = byId("scroll");
  let before = 0;
  area.addEventListener("scroll", () => {
    // Only a reader moves up; growing text moves nothing.
    if (area.scrollTop < before - 1) following = false;
    if (distance() < NEAR_PX) following = true;
    before = area.scrollTop;
    offer();
  });
  byId("latest").addEventListener("click", () => {
    toEnd();
    byId("question").focus();
  });
  new ResizeObserver(grown).observe(byId("messages"));
}

function distance() {
  const area = byId("scroll");
  return area.scrollHeight - area.clientHeight - area.scrollTop;
}

function offer() {
  byId("latest").hidden = following || distance() < NEAR_PX;
}

/** Something was added: go along, unless the reader is elsewhere. */
export function grown() {
  if (following) byId("scroll").scrollTop = byId("scroll").scrollHeight;
  offer();
}

/** Go to the end, and follow from there. */
export function toEnd() {
  following = true;
  grown();
}
